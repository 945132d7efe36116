#!/usr/bin/env bash
# torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# The gradient of a CSR matrix depends on how the product is spelt: w @ x gives it dense, as large as the full matrix, torch.sparse.mm(w, x) gives
# it in CSR. The products are equal.
# Guess before running: one operation under two names.
# Seen: w @ x torch.strided, torch.sparse.mm torch.sparse_csr.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet numpy==2.4.6
venv/bin/python - <<'PY'
import warnings

warnings.simplefilter("ignore")
import torch


def layout(product):
    weight = torch.eye(4).to_sparse_csr().requires_grad_()
    product(weight, torch.ones(4, 2)).sum().backward()
    return str(weight.grad.layout)


seen = (layout(lambda w, x: w @ x), layout(torch.sparse.mm))
print(seen)
if seen != ("torch.strided", "torch.sparse_csr"):
    raise SystemExit("changed")
PY
