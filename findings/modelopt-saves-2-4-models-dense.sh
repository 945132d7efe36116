#!/usr/bin/env bash
# nvidia-modelopt 0.47.0, transformers 5.23.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# A transformers model made 2:4 sparse by ModelOpt and saved with save_pretrained is dense on disk: the weights written
# hold no zeros, the masks lie beside them under names of their own. Loaded by plain transformers it is the dense model again;
# the masks are reported as unexpected keys and the outputs are others.
# Guess before running: the weights written hold the zeros.
# Seen: zeros in the weight on disk 0.0, after a plain reload 0.0, outputs differ; after export() and saving, 0.5.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv

venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet nvidia-modelopt==0.47.0 transformers==5.23.0 requests==2.34.2
venv/bin/python - <<'PY'
import warnings

warnings.simplefilter("ignore")
import modelopt.torch.sparsity as mts
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

torch.manual_seed(0)
sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
model = mts.sparsify(BertForSequenceClassification(BertConfig(**sizes)).eval(), mode="sparse_magnitude")
ids, name = torch.arange(8)[None], "bert.encoder.layer.0.intermediate.dense.weight"
with torch.no_grad():
    sparse = model(ids).logits

def zeros(model, folder):
    model.save_pretrained(folder)
    return float((load_file(f"{folder}/model.safetensors")[name] == 0).float().mean())

on_disk = zeros(model, "sparse")
again = BertForSequenceClassification.from_pretrained("sparse").eval()
with torch.no_grad():
    same = torch.allclose(again(ids).logits, sparse, atol=1e-5)
exported = zeros(mts.export(model), "exported")
print(f"zeros on disk {on_disk}, same outputs after reloading: {same}, zeros on disk after export {exported}")
if (on_disk, same, exported) != (0.0, False, 0.5):
    raise SystemExit("changed")
PY
