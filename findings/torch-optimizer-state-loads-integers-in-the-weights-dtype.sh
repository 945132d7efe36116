#!/usr/bin/env bash
# torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# Optimizer.load_state_dict casts every tensor of a parameter's state to the parameter's dtype, masks, positions and counters included;
# only the key "step" is spared. Positions above 256 come back as others from a checkpoint of a bfloat16 model, and a bool mask can no
# longer select.
# Guess before running: only floating-point state is cast, since an integer has another meaning.
# Seen: int64 positions 255 to 260 come back in bfloat16 as 255, 256, 256, 258, 260, 260; a bool mask comes back in bfloat16.
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

weight = nn.Parameter(torch.ones(6, dtype=torch.bfloat16))
before = torch.optim.SGD([weight], lr=0.1)
before.state[weight]["columns"] = torch.arange(255, 261)
before.state[weight]["active"] = torch.tensor([True, False] * 3)
after = torch.optim.SGD([weight], lr=0.1)
after.load_state_dict(before.state_dict())
columns, active = after.state[weight]["columns"], after.state[weight]["active"]
print(columns.dtype, columns.tolist(), active.dtype)
if (columns.dtype, columns.tolist(), active.dtype) != (torch.bfloat16, [255, 256, 256, 258, 260, 260], torch.bfloat16):
    raise SystemExit("changed")
PY
