#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# Wav2Vec2, HuBERT and WavLM write zeros for padded frames, and the mask embedding, into the very tensor that
# feature_projection.projection returned. A forward hook that kept the output (for calibration or distillation) finds it changed
# afterwards, and a layer that returns a view of a buffer of its own has that buffer written into. Other linear layers of these models are
# left alone.
# Guess before running: nobody writes into the output of a linear layer.
# Seen: in all three models exactly feature_projection.projection had its output changed.
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
from transformers import HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2Model, WavLMConfig, WavLMModel

sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": (8, 8), "conv_stride": (4, 4)}
sizes |= {"conv_kernel": (4, 4), "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
padded = torch.ones(2, 400, dtype=torch.long)
padded[1, 200:] = 0


def overwritten(config, cls):
    torch.manual_seed(0)
    model, kept = cls(config(**sizes)).eval(), {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda _, __, out, name=name: kept.update({name: (out, out.clone())}))
    with torch.no_grad():
        model(torch.randn(2, 400), attention_mask=padded)
    return [name for name, (out, copy) in kept.items() if not torch.equal(out, copy)]


pairs = (Wav2Vec2Config, Wav2Vec2Model), (HubertConfig, HubertModel), (WavLMConfig, WavLMModel)
seen = [overwritten(*pair) for pair in pairs]
print("linear layers whose output was written into:", seen)
if seen != [["feature_projection.projection"]] * 3:
    raise SystemExit("changed")
PY
