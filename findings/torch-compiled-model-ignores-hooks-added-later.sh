#!/usr/bin/env bash
# torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# A forward hook registered on a layer after the compiled model has run once (to collect activation norms for calibration, say) is not
# called: nothing checks for new hooks. It starts to be called when something else, such as another batch size, has the model compiled
# anew, so statistics are taken from some batches and not from others.
# Guess before running: the model is compiled anew, or the hook is called.
# Seen: 0 calls in 3 passes of the old shape; 1 call in the first pass of a new shape.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet numpy==2.4.6
venv/bin/python - <<'PY'
import torch
from torch import nn

model = nn.Sequential(nn.Linear(4, 4))
compiled, calls = torch.compile(model, backend="eager"), []
compiled(torch.ones(1, 4))
model[0].register_forward_hook(lambda *_: calls.append(1))
for _ in range(3):
    compiled(torch.ones(1, 4))
old = len(calls)
compiled(torch.ones(2, 4))
print(f"calls in three passes of the old shape: {old}, in one of a new shape: {len(calls) - old}")
if (old, len(calls) - old) != (0, 1):
    raise SystemExit("changed")
PY
