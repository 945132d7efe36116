#!/usr/bin/env bash
# sparsimony 0.1.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# The distributions of sparsimony take skip_first_layer and skip_last_layer, store them and never read them: the first and the last layer
# become as sparse as all others, without a warning.
# Guess before running: the layers named stay dense.
# Seen: all four layers at sparsity 0.75, with the uniform and with the Erdos-Renyi-kernel distribution.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet sparsimony==0.1.0 numpy==1.26.4
venv/bin/python - <<'PY'
import torch
from sparsimony.distributions.base import ERKDistribution, UniformDistribution
from sparsimony.dst.rigl import RigL
from sparsimony.schedulers.base import ConstantScheduler
from torch import nn


def sparsities(distribution):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(4)))
    keep = distribution(skip_first_layer=True, skip_last_layer=True)
    rigl = RigL(ConstantScheduler(0.3, 10, 2), keep, torch.optim.SGD(model.parameters(), lr=0.1), sparsity=0.75)
    rigl.prepare(model, [{"tensor_fqn": f"{i}.weight"} for i in range(4)])
    return [(layer.weight == 0).float().mean().item() for layer in model]


seen = sparsities(UniformDistribution), sparsities(ERKDistribution)
print("sparsity of the layers, uniform and ERK:", *seen)
if seen != ([0.75] * 4, [0.75] * 4):
    raise SystemExit("changed")
PY
