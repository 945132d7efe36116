#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# LoRA trains over a base layer masked by torch.nn.utils.prune, as it should. merge_and_unload adds the adapter to layer.weight, which a
# pruned layer computes anew from weight_orig before every forward pass: the merged model is the base without the adapter, and no warning
# says so.
# Guess before running: merging gives the adapter's output, or refuses a layer whose weight is computed.
# Seen: output of the merged model equal to the base without adapter (difference 0), not to the model with it; without pruning it is the
# other way round.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 safetensors==0.8.0 numpy==2.4.6
venv/bin/python - <<'PY'
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils import prune
from transformers import BertConfig, BertModel


def merged(pruned):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    base = BertModel(config).eval()
    if pruned:
        prune.l1_unstructured(base.encoder.layer[0].attention.self.query, "weight", 0.5)
    model = get_peft_model(base, LoraConfig(target_modules=["query"], init_lora_weights=False)).eval()
    words = torch.arange(6)[None]
    with torch.no_grad():
        adapted = model(words).last_hidden_state
        with model.disable_adapter():
            plain = model(words).last_hidden_state
        after = model.merge_and_unload()(words).last_hidden_state
    return torch.allclose(after, adapted, atol=1e-6), torch.equal(after, plain)


seen = merged(pruned=False), merged(pruned=True)
print("merged equals (adapted, base): dense %s, pruned %s" % seen)
if seen != ((True, False), (False, True)):
    raise SystemExit("changed")
PY
