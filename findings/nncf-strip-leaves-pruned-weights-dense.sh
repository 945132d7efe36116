#!/usr/bin/env bash
# nncf 3.4.0, torchao 0.18.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# nncf.strip, whose purpose is to take a compression's machinery out of a model, leaves a pruned model as it was in two of its
# three formats, the default among them: the weights hold no zeros and the masks stay as hooks. Only "in_place" writes zeros.
# It also imports torchao, which nncf does not declare: without it strip is a ModuleNotFoundError.
# Guess before running: after strip the weights hold the zeros and the masks are gone, whatever the format.
# Seen: native 0.0, dequantize 0.0, in_place 0.8 zeros in the weight; masks left: 1, 1, 0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv

venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet nncf==3.4.0 torchao==0.18.0
venv/bin/python - <<'PY'
import importlib.metadata
import warnings

warnings.simplefilter("ignore")
import nncf
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(32, 64)

    def forward(self, x):
        return self.inner(x)

torch.manual_seed(0)
x = torch.randn(2, 32)
pruned = nncf.prune(Net(), mode=nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_LOCAL, ratio=0.8, examples_inputs=x)
seen = {}
for form in nncf.StripFormat:
    state = nncf.strip(pruned, example_input=x, strip_format=form).state_dict()
    zeros = float((state["inner.weight"] == 0).float().mean())
    seen[form.value] = (round(zeros, 1), sum("mask" in key for key in state))
declared = any("torchao" in line for line in importlib.metadata.requires("nncf"))
print(seen, "torchao declared:", declared)
if seen != {"native": (0.0, 1), "dequantize": (0.0, 1), "in_place": (0.8, 0)} or declared:
    raise SystemExit("changed")
PY
