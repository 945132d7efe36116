#!/usr/bin/env bash
# transformers 5.23.0, accelerate 1.15.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# With auto_find_batch_size=True a run that gets out of memory after some steps (one long batch is enough) is started again with a smaller
# batch at step 0, with a new learning-rate schedule, but from the weights the failed attempt had reached. The steps taken so far count in
# no log; whatever else training changes in a model (masks, topologies) stays as well.
# Guess before running: the second attempt starts where the first one did, or goes on at its step.
# Seen: the second attempt begins with global_step 0 and the weight the first one had after 3 steps, not the initial one.
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


class Memory(Trainer):
    seen = []

    def compute_loss(self, model, inputs, **kwargs):
        rows, step = len(inputs["labels"]), self.state.global_step
        self.seen.append((rows, step, model.layer.weight.item()))
        if rows == 8 and step == 3:  # what torch raises when a long batch does not fit
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().compute_loss(model, inputs, **kwargs)


data = [{"x": torch.ones(1), "labels": torch.ones(1)} for _ in range(64)]
quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
args = TrainingArguments("out", max_steps=5, per_device_train_batch_size=8, learning_rate=0.1, auto_find_batch_size=True, **quiet)
trainer = Memory(Net(), args, train_dataset=data)
trainer.train()
first, failed = trainer.seen[0], next(entry for entry in trainer.seen if entry[1] == 3)
again = next(entry for entry in trainer.seen if entry[0] < 8)
print("rows, step and weight at the start, at the failure, at the new start:", first, failed, again)
if again[1] != 0 or again[2] != failed[2] or again[2] == first[2]:
    raise SystemExit("changed")
PY
