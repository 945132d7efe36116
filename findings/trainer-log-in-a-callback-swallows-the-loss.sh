#!/usr/bin/env bash
# transformers 5.23.0, accelerate 1.15.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# A callback that calls trainer.log in on_step_end, with a number of its own, clears control.should_log: the Trainer's entry of that step
# (loss, gradient norm, learning rate) is never written. Where the callback logs as often as the Trainer, no loss appears at all.
# Guess before running: an entry more appears in the log, and none less.
# Seen: 4 entries with a loss without the callback, none with it.
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
from transformers import Trainer, TrainerCallback, TrainingArguments


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x, labels):
        y = self.layer(x)
        return {"loss": (y - labels).square().mean(), "logits": y}


class Note(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.log({"sparsity": 0.9})


data = [{"x": torch.ones(1), "labels": torch.ones(1)} for _ in range(8)]


def entries(callbacks):
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    args = TrainingArguments("out", max_steps=4, logging_steps=1, per_device_train_batch_size=2, **quiet)
    trainer = Trainer(Net(), args, train_dataset=data, callbacks=callbacks)
    for callback in callbacks:
        callback.trainer = trainer
    trainer.train()
    return sum("loss" in entry for entry in trainer.state.log_history)


seen = entries([]), entries([Note()])
print("entries with a loss, without and with the callback:", seen)
if seen != (4, 0):
    raise SystemExit("changed")
PY
