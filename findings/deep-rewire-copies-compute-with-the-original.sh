#!/usr/bin/env bash
# deep-rewire 1.0.5, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# convert() gives each layer a forward function that remembers the layer it was made for. A deep copy of the model, as kept for the
# best epoch or an average of weights, therefore computes with the weights of the original, whatever its own are.
# Guess before running: a deep copy is a model of its own.
# Seen: after the original's weights were tripled the copy's output had changed and equalled the original's; its own weights had not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv

venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet deep-rewire==1.0.5
venv/bin/python - <<'PY'
import copy

import deep_rewire
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
deep_rewire.convert(model, active_probability=0.5)
kept, x = copy.deepcopy(model), torch.randn(3, 6)
before, own = kept(x), [p.clone() for p in kept.parameters()]
with torch.no_grad():
    for parameter in model.parameters():
        parameter.mul_(3)
weights_same = all(torch.equal(a, b) for a, b in zip(own, kept.parameters()))
follows = torch.equal(kept(x), model(x)) and not torch.equal(kept(x), before)
print(f"weights of the copy unchanged: {weights_same}, output follows the original: {follows}")
if not (weights_same and follows):
    raise SystemExit("changed")
PY
