#!/usr/bin/env bash
# transformers 5.23.0, accelerate 1.15.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# The Trainer saves the state of the random generators with each checkpoint and skips the batches already seen, so a resumed run is
# bit-identical, as long as the data set itself draws no random numbers. With a random crop or flip (here: noise from torch.rand in
# __getitem__) the resumed run sees other data than the uninterrupted one would have and ends elsewhere, with a single process and no
# workers.
# Guess before running: the saved generator states make both runs equal.
# Seen: equal weights without noise; with noise unequal when resumed, equal when the whole run is repeated.
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
from transformers import Trainer, TrainingArguments, set_seed


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x, labels):
        y = self.layer(x)
        return {"loss": (y - labels).square().mean(), "logits": y}


class Data(torch.utils.data.Dataset):
    def __init__(self, noise):
        self.noise = noise

    def __len__(self):
        return 16

    def __getitem__(self, i):
        return {"x": torch.tensor([i / 16]) + self.noise * torch.rand(1), "labels": torch.ones(1)}


def train(noise, resume=None):
    set_seed(0)
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True}
    args = TrainingArguments("out", max_steps=6, save_steps=2, per_device_train_batch_size=2, learning_rate=0.1, **quiet)
    trainer = Trainer(Net(), args, train_dataset=Data(noise))
    trainer.train(resume_from_checkpoint=resume)
    return [weight.item() for weight in trainer.model.parameters()]


def equal(noise):
    whole = train(noise)
    return whole == train(noise, "out/checkpoint-2"), whole == train(noise)


seen = equal(0), equal(1)
print("resumed run equal, repeated run equal: without noise %s, with noise %s" % seen)
if seen != ((True, True), (False, True)):
    raise SystemExit("changed")
PY
