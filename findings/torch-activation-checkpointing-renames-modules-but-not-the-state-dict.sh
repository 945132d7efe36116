#!/usr/bin/env bash
# torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# apply_activation_checkpointing, which accelerate's FSDP option fsdp_activation_checkpointing uses, puts "_checkpoint_wrapped_module"
# into the names that named_modules and named_parameters give, and takes it out of the state dict's. What is chosen, seeded or written
# down by a module's name (layers to prune, weights without decay, a list of sparse layers in a config) then misses, while saving and
# loading show nothing.
# Guess before running: one module has one name.
# Seen: state dict 0.0.weight; named_parameters 0.0._checkpoint_wrapped_module.weight; get_parameter finds both.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet numpy==2.4.6
venv/bin/python - <<'PY'
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

model = nn.Sequential(nn.Sequential(nn.Linear(2, 2, bias=False)))
apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, nn.Linear))
saved, (named, weight) = list(model.state_dict()), next(model.named_parameters())
linear = next(name for name, module in model.named_modules() if isinstance(module, nn.Linear))
found = model.get_parameter("0.0.weight") is weight and model.get_parameter(named) is weight
print(f"state dict: {saved}, named_parameters: {named}, the linear layer: {linear}, found under both: {found}")
if (saved, named, linear) != (["0.0.weight"], "0.0._checkpoint_wrapped_module.weight", "0.0._checkpoint_wrapped_module") or not found:
    raise SystemExit("changed")
PY
