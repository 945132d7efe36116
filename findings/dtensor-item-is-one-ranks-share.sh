#!/usr/bin/env bash
# torch 2.13.0 (gloo, 2 processes), Python 3.11. Seen 2026-11-27.
#
# .item() of a reduction over a sharded DTensor gives each rank the sum over its own shard, with no communication and no error, while
# float(x.full_tensor()) gives the sum. So counting non-zeros or logging a norm of FSDP2 parameters by .item() is silently a part of the
# truth, and another one on each rank. max().item() is likewise the maximum of the rank's own shard.
# Guess before running: .item() either reduces first or refuses, as .tolist() does.
# Seen: of 5 ones on rank 0 and 4 on rank 1, sum().item() is 5 and 4, full_tensor() 9 on both; max().item() of 0..8 is 4 and 8.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0 numpy==2.4.6
cat > ranks.py <<'PY'
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
ones = distribute_tensor(torch.ones(9), mesh, [Shard(0)])
ramp = distribute_tensor(torch.arange(9.0), mesh, [Shard(0)])
seen = (ones.sum().item(), float(ones.sum().full_tensor()), ramp.max().item())
print(f"rank {dist.get_rank()}: sum().item(), the sum, max().item(): {seen}", flush=True)
if seen != {0: (5.0, 9.0, 4.0), 1: (4.0, 9.0, 8.0)}[dist.get_rank()]:
    raise SystemExit("changed")
dist.destroy_process_group()
PY
OMP_NUM_THREADS=1 venv/bin/torchrun --nproc_per_node 2 ranks.py
