#!/usr/bin/env bash
# transformers 5.23.0, accelerate 1.15.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# TrainingArguments(fsdp=..., use_cpu=True) on two CPU processes trains with DistributedDataParallel: the plugin is built, and the state that
# would switch to FSDP lists GPUs only. Nothing is logged, so a test of sharding on CPUs tests replication.
# Guess before running: FSDP2 on gloo (which fully_shard supports), or a refusal.
# Seen: model_wrapped is a DistributedDataParallel, distributed type MULTI_CPU.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0 numpy==2.4.6
cat > ranks.py <<'PY'
import torch
from torch import nn
from transformers import Trainer, TrainingArguments


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x, labels=None):
        return {"loss": self.layer(x).sum()}


quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
args = TrainingArguments("out", max_steps=1, fsdp="full_shard", fsdp_config={"version": 2}, **quiet)
trainer = Trainer(Net(), args, train_dataset=[{"x": torch.ones(2)}] * 16)
trainer.train()
seen = (type(trainer.model_wrapped).__name__, trainer.accelerator.distributed_type.value)
if args.process_index == 0:
    print(seen)
if seen != ("DistributedDataParallel", "MULTI_CPU"):
    raise SystemExit("changed")
torch.distributed.destroy_process_group()
PY
OMP_NUM_THREADS=1 venv/bin/torchrun --nproc_per_node 2 ranks.py
