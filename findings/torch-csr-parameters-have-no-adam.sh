#!/usr/bin/env bash
# torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# A parameter in CSR layout gets a CSR gradient from torch.sparse.mm, and no adaptive optimizer of torch takes it: AdamW fails on the
# layout, Adagrad on the memory format, and SparseAdam, made for sparse gradients, says that this one is dense. SGD with
# momentum trains it. A module that holds such a parameter cannot be deep-copied, so no copy of the best epoch can be kept that way.
# Guess before running: SparseAdam takes sparse gradients, and what SGD trains can be copied.
# Seen: SGD trains; AdamW, Adagrad and SparseAdam RuntimeError (the last: "does not support dense gradients"); deepcopy RuntimeError.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv

venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet numpy==2.4.6
venv/bin/python - <<'PY'
import copy
import warnings

warnings.simplefilter("ignore")
import torch
from torch import nn, optim

torch.manual_seed(0)
weight = torch.randn(6, 8) * (torch.rand(6, 8) < 0.3)

def step(make):
    parameter = nn.Parameter(weight.to_sparse_csr())
    optimizer = make([parameter])
    torch.sparse.mm(parameter, torch.ones(8, 2)).square().sum().backward()
    layout = parameter.grad.layout
    optimizer.step()
    return str(layout)

def outcome(call):
    try:
        return call()
    except RuntimeError as error:
        return "says dense" if "dense gradients" in str(error) else "RuntimeError"

seen = {
    "SGD": outcome(lambda: step(lambda p: optim.SGD(p, lr=0.1, momentum=0.9))),
    "AdamW": outcome(lambda: step(lambda p: optim.AdamW(p, lr=0.1))),
    "Adagrad": outcome(lambda: step(lambda p: optim.Adagrad(p, lr=0.1))),
    "SparseAdam": outcome(lambda: step(lambda p: optim.SparseAdam(p, lr=0.1))),
    "copy": outcome(lambda: str(copy.deepcopy(nn.Parameter(weight.to_sparse_csr())).layout)),
}
print(seen)
csr, fails = "torch.sparse_csr", "RuntimeError"
if list(seen.values()) != [csr, fails, fails, "says dense", fails]:
    raise SystemExit("changed")
PY
