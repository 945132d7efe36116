#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# Saving a model in shards into a folder that holds an older version of it in one file leaves that file, and from_pretrained prefers
# the single file to the index: the older weights are loaded. Nothing is said at either end.
# Guess before running: save_pretrained removes what it replaces, as it does for older shards.
# Seen: after adding 1 to every weight and saving with max_shard_size="20KB", loading gives the weights before (off by exactly 1.0).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
venv/bin/python - <<'PY'
import os

import torch
from transformers import BertConfig, BertModel
from transformers.utils import logging

logging.set_verbosity_error()
sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
model = BertModel(BertConfig(**sizes))
model.save_pretrained("out")
with torch.no_grad():
    before = model.pooler.dense.weight.clone()
    for parameter in model.parameters():
        parameter.add_(1)
model.save_pretrained("out", max_shard_size="20KB")
old = torch.equal(BertModel.from_pretrained("out").pooler.dense.weight, before)
both = {"model.safetensors", "model.safetensors.index.json"} <= set(os.listdir("out"))
print(f"single file and shards side by side: {both}; loaded the older weights: {old}")
if not (both and old):
    raise SystemExit("changed")
PY
