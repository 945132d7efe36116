#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# A checkpoint whose config.json names a quantization method that no installed package registers is loaded all the same, with a line
# in the log. Where its tensors are named otherwise than the dense ones, the layers keep random weights and nothing is raised.
# Guess before running: an error that names the missing package.
# Seen: from_pretrained returns; the weight whose tensor has another name is not the one that was saved.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
venv/bin/python - <<'PY'
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification
from transformers.utils import logging

logging.set_verbosity_error()
sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
model = BertForSequenceClassification(BertConfig(**sizes))
model.save_pretrained("packed")
name = "bert.encoder.layer.0.intermediate.dense.weight"
tensors = load_file("packed/model.safetensors")
tensors[name.replace("weight", "packed")] = tensors.pop(name)
save_file(tensors, "packed/model.safetensors", metadata={"format": "pt"})
config = json.loads(Path("packed/config.json").read_text())
config["quantization_config"] = {"quant_method": "of_another_package"}
Path("packed/config.json").write_text(json.dumps(config))
loaded = BertForSequenceClassification.from_pretrained("packed")
differs = not torch.equal(loaded.get_parameter(name), model.get_parameter(name))
print("loaded without an error, weights not those saved:", differs)
if not differs:
    raise SystemExit("changed")
PY
