#!/usr/bin/env bash
# torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# nbytes of a compressed sparse tensor (CSR, CSC, BSR) is that of the dense matrix it stands for, while a COO tensor refuses the question.
# So sums of nbytes over parameters report no saving at all for a model with CSR weights.
# Guess before running: the bytes of values and indices, or a refusal for every sparse layout.
# Seen: 100 of 10,000 entries used, CSR and CSC nbytes 40000 (held: 2008), BSR 40000; COO RuntimeError.
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

dense = torch.eye(100)
csr = dense.to_sparse_csr()
held = sum(part.nbytes for part in (csr.crow_indices(), csr.col_indices(), csr.values()))
seen = {"csr": csr.nbytes, "csc": dense.to_sparse_csc().nbytes, "bsr": dense.to_sparse_bsr((2, 2)).nbytes}
try:
    seen["coo"] = dense.to_sparse().nbytes
except RuntimeError as error:
    seen["coo"] = type(error).__name__
print(seen, "held by csr:", held)
if seen != {"csr": 40000, "csc": 40000, "bsr": 40000, "coo": "RuntimeError"} or held >= 4000:
    raise SystemExit("changed")
PY
