#!/usr/bin/env bash
# sparselab 0.2.2, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# The state dict of a sparselab layer holds its values and bias, and not where the values stand. Loaded into a new layer that happens to
# have as many values it fits, with strict=True and without a warning, and the values stand at other positions; with another number of
# values it is refused for a size mismatch.
# Guess before running: a state dict is enough to restore a layer, or is refused.
# Seen: all keys matched, values equal, outputs different.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet sparselab==0.2.2 numpy==2.4.6
venv/bin/python - <<'PY'
import torch
from sparselab import SparseLinear


def layer(seed):
    torch.manual_seed(seed)
    return SparseLinear(8, 8, sparsity=0.75)


saved = layer(1)
size = saved.state_dict()["_values"].shape
new = next(other for other in map(layer, range(2, 100)) if other.state_dict()["_values"].shape == size)
new.load_state_dict(saved.state_dict(), strict=True)
x, values = torch.ones(1, 8), torch.equal(new.state_dict()["_values"], saved.state_dict()["_values"])
same = torch.allclose(saved(x), new(x))
print(f"keys: {list(saved.state_dict())}, values equal: {values}, outputs equal: {same}")
if not values or same:
    raise SystemExit("changed")
PY
