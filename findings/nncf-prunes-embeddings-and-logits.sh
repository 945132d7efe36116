#!/usr/bin/env bash
# nncf 3.4.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# nncf.prune by magnitude, asked for nothing but a ratio, also prunes the embedding table and the layer that produces the logits.
# Guess before running: linear layers inside the network only, as most pruning tools do it.
# Seen: masks with 80% zeros for the embedding, the inner layer and the output layer alike.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv

venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet nncf==3.4.0
venv/bin/python - <<'PY'
import nncf
import torch
from torch import nn

class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.inner, self.logits = nn.Embedding(50, 32), nn.Linear(32, 64), nn.Linear(64, 5)

    def forward(self, ids):
        return self.logits(torch.relu(self.inner(self.words(ids))))

torch.manual_seed(0)
ids = torch.arange(8)[None]
pruned = nncf.prune(Classifier(), mode=nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_LOCAL, ratio=0.8, examples_inputs=ids)
masks = {key.split("post_hooks.")[1].split(":")[0]: mask for key, mask in pruned.state_dict().items() if "mask" in key}
shares = {name: round(float((mask == 0).float().mean()), 1) for name, mask in masks.items()}
print(shares)
if shares != {"words": 0.8, "inner": 0.8, "logits": 0.8}:
    raise SystemExit("changed")
PY
