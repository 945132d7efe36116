#!/usr/bin/env bash
# transformers 5.23.0, accelerate 1.15.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# With restore_callback_states_from_checkpoint=True the Trainer does not restore the callback it was given: it makes another object of
# that class from the checkpoint's values, and calls that one. The object in the caller's hands stays as it was and is never called, so
# what it is asked after training is wrong.
# Guess before running: the callback that was passed in gets its state back.
# Seen: after resuming at step 2 and training to step 4 the callback passed in has counted 0 steps, the one in trainer.callback_handler 4.
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
from transformers.trainer_callback import ExportableState


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x, labels):
        y = self.layer(x)
        return {"loss": (y - labels).square().mean(), "logits": y}


class Count(TrainerCallback, ExportableState):
    def __init__(self, steps=0):
        self.steps = steps

    def on_step_end(self, *args, **kwargs):
        self.steps += 1

    def state(self):
        return {"args": {}, "attributes": {"steps": self.steps}}


data = [{"x": torch.ones(1), "labels": torch.ones(1)} for _ in range(8)]


def counted(max_steps, resume=None):
    mine = Count()
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "restore_callback_states_from_checkpoint": True}
    args = TrainingArguments("out", max_steps=max_steps, save_steps=2, per_device_train_batch_size=2, **quiet)
    trainer = Trainer(Net(), args, train_dataset=data, callbacks=[mine])
    trainer.train(resume_from_checkpoint=resume)
    (called,) = (one for one in trainer.callback_handler.callbacks if isinstance(one, Count))
    return mine.steps, called.steps


seen = counted(2), counted(4, "out/checkpoint-2")
print("steps counted by the callback passed in and by the one that was called, first run and resumed run:", *seen)
if seen != ((2, 2), (0, 4)):
    raise SystemExit("changed")
PY
