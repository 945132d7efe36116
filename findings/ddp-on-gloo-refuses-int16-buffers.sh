#!/usr/bin/env bash
# torch 2.13.0 (gloo, 2 processes), Python 3.11. Seen 2026-11-27.
#
# DistributedDataParallel broadcasts buffers at each forward pass, and on gloo a single int16 buffer makes it fail with "Invalid scalar
# type", which names neither the buffer nor its dtype. All other integer widths and bool pass.
# Guess before running: a broadcast moves bytes, so every dtype passes.
# Seen: int8, uint8, int32, int64, bool pass; int16 RuntimeError "Invalid scalar type".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet numpy==2.4.6
cat > ranks.py <<'PY'
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")


def outcome(dtype):
    model = nn.Linear(2, 2)
    model.register_buffer("table", torch.zeros(3, dtype=dtype))
    try:
        DistributedDataParallel(model)(torch.ones(1, 2))
    except RuntimeError as error:
        return "refused" if "Invalid scalar type" in str(error) else "another error"
    return "passes"


seen = {str(d): outcome(d) for d in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)}
if dist.get_rank() == 0:
    print(seen)
if [name for name, what in seen.items() if what != "passes"] != ["torch.int16"] or seen["torch.int16"] != "refused":
    raise SystemExit("changed")
dist.destroy_process_group()
PY
OMP_NUM_THREADS=1 venv/bin/torchrun --nproc_per_node 2 ranks.py
