#!/usr/bin/env bash
# trl 1.16.0, transformers 5.23.0, accelerate 1.15.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# sync_ref_model=True moves the reference model's parameters towards the trained model's and leaves its buffers alone. For layers masked
# by torch.nn.utils.prune, where the mask is a buffer, the reference gets the weights of the trained model under its own old mask: a
# network that is neither of the two.
# Guess before running: what a sync with weight 1 leaves is a copy of the trained model.
# Seen: after a sync with weight 1 the parameters are equal, the masks and the effective weights are not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet transformers==5.23.0 trl==1.16.0 accelerate==1.15.0 datasets==5.2.0 safetensors==0.8.0 numpy==2.4.6
venv/bin/python - <<'PY'
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.utils import prune
from trl.trainer.callbacks import SyncRefModelCallback

Accelerator(cpu=True)
trained, reference = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
prune.custom_from_mask(trained, "weight", torch.tensor([[1, 0], [1, 0]]))
prune.custom_from_mask(reference, "weight", torch.tensor([[0, 1], [0, 1]]))
SyncRefModelCallback.sync_target_model(trained, reference, 1.0)
x = torch.ones(1, 2)
seen = (
    torch.equal(trained.weight_orig, reference.weight_orig),
    torch.equal(trained.weight_mask, reference.weight_mask),
    torch.equal(trained(x), reference(x)),
)
print("parameters, masks, outputs equal after the sync:", seen)
if seen != (True, False, False):
    raise SystemExit("changed")
PY
