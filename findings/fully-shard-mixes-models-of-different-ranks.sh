#!/usr/bin/env bash
# torch 2.13.0 (gloo, 2 processes), Python 3.11. Seen 2026-11-27.
#
# DistributedDataParallel starts all ranks from rank 0's weights. fully_shard keeps each rank's own rows of its own weights: where ranks
# were built from different seeds, one model is made of rows of several, without an error. Values that were trained together, or that
# stand at positions chosen by their rank's mask, are torn apart.
# Guess before running: fully_shard takes rank 0's weights as DDP does, or refuses weights that differ.
# Seen: a weight of ones on rank 0 and twos on rank 1: DDP has ones everywhere, fully_shard a row of ones and one of twos.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet numpy==2.4.6
cat > check.py <<'PY'
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def layer():
    made = nn.Linear(2, 2, bias=False)
    nn.init.constant_(made.weight, dist.get_rank() + 1)
    return made


dist.init_process_group("gloo")
replicated = nn.parallel.DistributedDataParallel(layer()).module.weight.tolist()
sharded = fully_shard(layer(), mesh=init_device_mesh("cpu", (2,))).weight.full_tensor().tolist()
print(f"rank {dist.get_rank()}: DDP {replicated}, fully_shard {sharded}", flush=True)
dist.destroy_process_group()
if (replicated, sharded) != ([[1, 1], [1, 1]], [[1, 1], [2, 2]]):
    raise SystemExit("changed")
PY
OMP_NUM_THREADS=1 venv/bin/torchrun --nproc_per_node 2 check.py
