#!/usr/bin/env bash
# torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# A forward hook registered on a layer after torch.compile(model) has run once (to collect activation norms for calibration, say) is not
# called: nothing checks for new hooks. It starts to be called when something else, such as another batch size, has the model compiled
# anew, so statistics are taken from some batches and not from others. After model.compile() the same hook is called from the first pass
# on.
# Guess before running: the hook is called, whichever way the model was compiled.
# Seen: torch.compile(model): 0 calls in 3 passes of the old shape, 1 in the first of a new shape; model.compile(): 3 and 1.
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


def calls(in_place):
    torch._dynamo.reset()
    model, called = nn.Sequential(nn.Linear(4, 4)), []
    if in_place:
        model.compile(backend="eager")
    run = model if in_place else torch.compile(model, backend="eager")
    run(torch.ones(1, 4))
    model[0].register_forward_hook(lambda *_: called.append(1))
    for _ in range(3):
        run(torch.ones(1, 4))
    old = len(called)
    run(torch.ones(2, 4))
    return old, len(called) - old


seen = calls(in_place=False), calls(in_place=True)
print("calls in three passes of the old shape and one of a new: torch.compile(model) %s, model.compile() %s" % seen)
if seen != ((0, 1), (3, 1)):
    raise SystemExit("changed")
PY
