#!/usr/bin/env bash
# torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# FlopCounterMode, asked for the same product of a CSR matrix and a dense one, reports the dense product's operations when it is written
# with the operator @, and none at all when it is written as torch.sparse.mm. Neither number depends on how many values the matrix has.
# Guess before running: twice the stored values times the columns, however the product is written.
# Seen: dense 8,388,608; CSR with @ 8,388,608; CSR with torch.sparse.mm 0; by the stored values it would be 32,768.
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
from torch.utils.flop_counter import FlopCounterMode

eye, x = torch.eye(256), torch.ones(256, 64)
csr = eye.to_sparse_csr()


def operations(product):
    with FlopCounterMode(display=False) as counter:
        product()
    return counter.get_total_flops()


seen = operations(lambda: eye @ x), operations(lambda: csr @ x), operations(lambda: torch.sparse.mm(csr, x))
print("dense, CSR @, torch.sparse.mm:", seen, "by the stored values:", 2 * csr.values().numel() * 64)
if seen != (8388608, 8388608, 0):
    raise SystemExit("changed")
PY
