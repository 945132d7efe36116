#!/usr/bin/env bash
# torchao 0.18.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# torchao's WandaSparsifier differs from the method it is named after (arXiv 2306.11695) in two ways: it compares all weights of a layer with each
# other instead of those of one output, so whole outputs vanish, and it weighs weights by the squared norm of their input.
# Guess before running: the largest |weight| * norm of each row are kept.
# Seen: four rows of equal shape and growing size, half pruned: 0, 0, 8, 8 left per row; weights 3 and 1 on inputs of norm 1 and 2 times the
# same: the 1 is kept (scores 3 and 2 by the paper, 3 and 4 with squares).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet torchao==0.18.0 numpy==2.4.6
venv/bin/python - <<'PY'
import logging
import warnings

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import torch
from torch import nn
from torchao.sparsity import WandaSparsifier


def pruned(weight, x):
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    model[0].weight.data.copy_(weight)
    wanda = WandaSparsifier(sparsity_level=0.5)
    wanda.prepare(model, config=[{"tensor_fqn": "0.weight"}])
    model(x)
    wanda.step()
    wanda.squash_mask()
    return model[0].weight != 0


rows = torch.arange(1.0, 5.0)[:, None] * torch.linspace(1, 1.1, 8)[None]
left = pruned(rows, torch.ones(5, 8)).sum(1).tolist()
kept = pruned(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 2.0]]).repeat(4, 1))[0].tolist()
print("left per row:", left, "kept of 3 and 1:", kept)
if left != [0, 0, 8, 8] or kept != [False, True]:
    raise SystemExit("changed")
PY
