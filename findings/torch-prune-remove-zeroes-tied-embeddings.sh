#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# torch.nn.utils.prune masks the output layer of a model whose embeddings share its weight. While the mask is on, the embeddings compute
# with the unmasked weight. prune.remove, which is said to make pruning permanent, writes the zeros into the shared parameter, so that
# half of all embeddings vanish and the model computes something it never did in training.
# Guess before running: removing the reparametrization leaves what the model computes as it is.
# Seen: zeros in the embeddings 0.0 before and 0.5 after remove; the hidden states change.
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
from torch.nn.utils import prune
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "bos_token_id": 1, "eos_token_id": 1}
model = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
table, words = model.transformer.wte.weight, torch.arange(8)[None]
prune.l1_unstructured(model.lm_head, "weight", 0.5)


def look():
    with torch.no_grad():
        return (table == 0).float().mean().item(), model.transformer(words).last_hidden_state


(before, hidden), _ = look(), prune.remove(model.lm_head, "weight")
after, hidden_after = look()
same = torch.allclose(hidden, hidden_after)
print(f"zeros in the embeddings: {before} masked, {after} after remove; hidden states unchanged: {same}")
if (before, after, same) != (0.0, 0.5, False):
    raise SystemExit("changed")
PY
