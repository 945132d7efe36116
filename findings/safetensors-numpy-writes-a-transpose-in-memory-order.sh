#!/usr/bin/env bash
# safetensors 0.8.0, numpy 2.4.6, Python 3.11. Seen 2026-11-27.
#
# safetensors.numpy writes the bytes of an array as they lie in memory under the shape the array shows. A transposed matrix, the usual way from
# one framework's layout to another's, is therefore read back with its numbers in other places. The torch side of the same package refuses
# tensors that are not contiguous.
# Guess before running: the numbers of the array, or the same refusal.
# Seen: [[0, 3], [1, 4], [2, 5]] is read back as [[0, 1], [2, 3], [4, 5]].
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet safetensors==0.8.0 numpy==2.4.6
venv/bin/python - <<'PY'
import numpy as np
from safetensors.numpy import load, save

matrix = np.arange(6, dtype=np.float32).reshape(2, 3).T
again = load(save({"x": matrix}))["x"]
print(matrix.tolist(), "->", again.tolist())
if again.tolist() != [[0, 1], [2, 3], [4, 5]]:
    raise SystemExit("changed")
PY
