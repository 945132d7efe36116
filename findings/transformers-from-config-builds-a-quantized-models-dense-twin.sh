#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# AutoModel.from_config with the configuration of a quantized checkpoint builds ordinary dense layers, in full size, without reading
# quantization_config, even where the package that the method needs is missing. The dense model still carries the quantization_config,
# writes it when saved, and from_pretrained then refuses what it saved, for want of the package.
# Guess before running: the model is built quantized, or the configuration is refused.
# Seen: from_config gives nn.Linear and keeps the configuration; from_pretrained of what that model saved raises ImportError.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0 numpy==2.4.6
venv/bin/python - <<'PY'
from torch import nn
from transformers import AutoModel, BertConfig

quantization = {"quant_method": "compressed-tensors", "format": "dense", "config_groups": {}, "ignore": []}
sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
model = AutoModel.from_config(BertConfig(**sizes, quantization_config=quantization))
kind, kept = type(model.encoder.layer[0].attention.self.query), hasattr(model.config, "quantization_config")
model.save_pretrained("saved")
try:
    AutoModel.from_pretrained("saved")
    loading = "loads"
except ImportError as error:
    loading = f"ImportError: {error}"
print(f"{kind.__name__}, quantization_config kept: {kept}, what it saved: {loading}")
if kind is not nn.Linear or not kept or loading == "loads":
    raise SystemExit("changed")
PY
