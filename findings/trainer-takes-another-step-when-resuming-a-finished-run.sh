#!/usr/bin/env bash
# transformers 5.23.0, accelerate 1.15.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# A run that reached max_steps in the middle of an epoch and is resumed from its last checkpoint (a job restarted after it was done, say)
# takes one more optimizer step, past max_steps, with the learning rate the scheduler has there. At the end of an epoch it takes none.
# Guess before running: nothing is left to do, so nothing is done.
# Seen: global_step 4 after training, 5 after resuming from checkpoint-4.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0 numpy==2.4.6
venv/bin/python - <<'PY'
import torch
from torch import nn
from transformers import Trainer, TrainingArguments


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x, labels):
        y = self.layer(x)
        return {"loss": (y - labels).square().mean(), "logits": y}


data = [{"x": torch.ones(1), "labels": torch.ones(1)} for _ in range(12)]


def steps(resume=None):
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True}
    args = TrainingArguments("out", max_steps=4, save_steps=2, per_device_train_batch_size=2, **quiet)
    trainer = Trainer(Net(), args, train_dataset=data)
    trainer.train(resume_from_checkpoint=resume)
    return trainer.state.global_step


seen = (steps(), steps("out/checkpoint-4"))
print("global_step after training and after resuming:", seen)
if seen != (4, 5):
    raise SystemExit("changed")
PY
