#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# A stored integer tensor wider than the model's buffer is cast while loading without a range check: 70000 becomes 4464 in an int16
# buffer. Floating point mismatches of shape are refused; this passes without a line in the log.
# Guess before running: an error, or the stored dtype is kept.
# Seen: stored int64 [70000, 2, 3], loaded int16 [4464, 2, 3].
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
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

logging.set_verbosity_error()


class Config(PreTrainedConfig):
    model_type = "plain"


class Model(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(3, 3)
        self.register_buffer("places", torch.tensor([1, 2, 3], dtype=torch.int16))
        self.post_init()


Model(Config()).save_pretrained("out")
tensors = load_file("out/model.safetensors")
save_file(tensors | {"places": torch.tensor([70000, 2, 3])}, "out/model.safetensors", metadata={"format": "pt"})
loaded = Model.from_pretrained("out").places
print(loaded)
if loaded.dtype is not torch.int16 or loaded.tolist() != [4464, 2, 3]:
    raise SystemExit("changed")
PY
