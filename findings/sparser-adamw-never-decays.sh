#!/usr/bin/env bash
# torch-optim-sparse 0.1.3, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# SparserAdamW takes weight_decay and never decays a weight: the decay is applied to what indexing has copied. The plain
# SparserAdam and both SGD variants of the same package do decay.
# Guess before running: rows with a gradient shrink by lr * weight_decay at each step, which is the package's purpose.
# Seen: after five steps the weights with decay 0 and 0.5 are equal to the bit for SparserAdamW, and differ for the other three.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv

venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet torch-optim-sparse==0.1.3
venv/bin/python - <<'PY'
import torch
import torch_optim_sparse
from torch import nn

def trained(optimizer, weight_decay):
    torch.manual_seed(0)
    table = nn.Embedding(6, 3, sparse=True)
    optimizer = optimizer(table.parameters(), lr=0.1, weight_decay=weight_decay)
    for _ in range(5):
        optimizer.zero_grad()
        table(torch.tensor([1, 2])).square().sum().backward()
        optimizer.step()
    return table.weight.detach()

names = ("SparserAdamW", "SparserAdam", "SparserSGDW", "SparserSGD")
classes = {name: getattr(torch_optim_sparse, name) for name in names}
ignored = {name: torch.equal(trained(cls, 0.0), trained(cls, 0.5)) for name, cls in classes.items()}
print("weight decay changes nothing:", ignored)
if ignored != {"SparserAdamW": True, "SparserAdam": False, "SparserSGDW": False, "SparserSGD": False}:
    raise SystemExit("changed")
PY
