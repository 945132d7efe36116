#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# from_pretrained builds a model without memory and fills it from the file. What the constructor decides besides is lost without a word: a
# parameter it froze comes back trainable, and a buffer that is not saved (persistent=False) comes back with whatever was in
# memory instead of the values the constructor gave it. Calling the class directly keeps both.
# Guess before running: loading a model gives what constructing it and copying the weights would give.
# Seen: requires_grad False before, True after; buffer 0, 7, 14, ... before, arbitrary numbers after.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
venv/bin/python - <<'PY'
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

logging.set_verbosity_error()


class Config(PreTrainedConfig):
    model_type = "plain"


class Model(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.Linear(3, 3)
        self.layer.weight.requires_grad_(False)
        self.register_buffer("table", torch.arange(64) * 7, persistent=False)
        self.post_init()


model = Model(Config())
model.save_pretrained("out")
loaded = Model.from_pretrained("out")
frozen, same = not loaded.layer.weight.requires_grad, torch.equal(loaded.table, model.table)
print(f"still frozen: {frozen}, table as constructed: {same}")
if frozen or same:
    raise SystemExit("changed")
PY
