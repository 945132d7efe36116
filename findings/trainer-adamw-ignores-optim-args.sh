#!/usr/bin/env bash
# transformers 5.23.0, accelerate 1.15.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# TrainingArguments(optim_args=...) reaches some optimizers and not others: RMSprop, Adagrad and SGD take eps and momentum from it,
# adamw_torch and adamw_torch_fused (the default) drop it, unknown names included, without a word.
# Guess before running: every optimizer reads it, and a name it does not know is an error.
# Seen: eps asked for 0.5; adamw_torch 1e-08, adamw_torch_fused 1e-08, rmsprop 0.5, adagrad 0.5.
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
from transformers import Trainer, TrainingArguments

seen = {}
for optim in ("adamw_torch", "adamw_torch_fused", "rmsprop", "adagrad"):
    args = TrainingArguments("out", report_to="none", use_cpu=True, optim=optim, optim_args="eps=0.5,no_such_option=1")
    seen[optim] = Trainer(nn.Linear(2, 2), args).create_optimizer().defaults["eps"]
print(seen)
if seen != {"adamw_torch": 1e-8, "adamw_torch_fused": 1e-8, "rmsprop": 0.5, "adagrad": 0.5}:
    raise SystemExit("changed")
PY
