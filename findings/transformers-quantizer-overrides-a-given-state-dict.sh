#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# save_pretrained(state_dict=...) writes the tensors it is given: this is how gathered weights of a sharded model, or an average, are
# saved. For a model loaded through a quantizer the argument is thrown away without a word, and the model's own tensors are written, with
# any quantizer registered from outside whose get_state_dict_and_metadata is the inherited one.
# Guess before running: what is passed as state_dict is what is written.
# Seen: a state dict full of 2.0 gives 2.0 in the file for the plain model, the old weights for the one with a quantizer.
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
from safetensors.torch import load_file
from transformers import BertConfig, BertModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin


@register_quantization_config("plain")
class PlainConfig(QuantizationConfigMixin):
    def __init__(self, **kwargs):
        self.quant_method = "plain"


@register_quantizer("plain")
class PlainQuantizer(HfQuantizer):
    requires_calibration = False

    def _process_model_before_weight_loading(self, model, **kwargs):
        return model

    def is_serializable(self, *args, **kwargs):
        return True

    @property
    def is_trainable(self):
        return True


dense = BertModel(BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
dense.save_pretrained("dense")
quantized = BertModel.from_pretrained("dense", quantization_config=PlainConfig())


def written(model, folder):
    model.save_pretrained(folder, state_dict={name: torch.full_like(x, 2) for name, x in model.state_dict().items()})
    return bool((load_file(folder + "/model.safetensors")["pooler.dense.weight"] == 2).all())


seen = written(dense, "a"), written(quantized, "b")
print("the state dict was written: without quantizer %s, with one %s" % seen)
if seen != (True, False):
    raise SystemExit("changed")
PY
