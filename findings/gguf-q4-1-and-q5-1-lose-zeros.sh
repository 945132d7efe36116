#!/usr/bin/env bash
# gguf 0.19.0, numpy 2.4.6, Python 3.11. Seen 2026-11-27.
#
# Of a matrix that is 90% zeros, the formats with an offset (Q4_1, Q5_1) keep about a fifth of the zeros: their grid starts at the block's
# minimum and 0 need not be on it. Q4_0, Q5_0 and Q8_0 keep all of them. The formats that look more precise also have the larger error here.
# Guess before running: 0 is on every grid, as in quantization with a zero point.
# Seen: zeros kept: Q4_0 1.0, Q4_1 0.22, Q5_0 1.0, Q5_1 0.22, Q8_0 1.0; relative error Q4_0 0.048, Q4_1 0.106.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet gguf==0.19.0 numpy==2.4.6
venv/bin/python - <<'PY'
import gguf
import numpy as np
from gguf.quants import dequantize, quantize

rng = np.random.default_rng(0)
weight = rng.standard_normal((64, 256)).astype(np.float32)
weight[rng.random(weight.shape) < 0.9] = 0
kept, error = {}, {}
for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
    kind = gguf.GGMLQuantizationType[name]
    again = dequantize(quantize(weight, kind), kind)
    kept[name] = round(float((again[weight == 0] == 0).mean()), 2)
    error[name] = round(float(np.linalg.norm(again - weight) / np.linalg.norm(weight)), 3)
print("zeros kept:", kept, "relative error:", error)
whole = all(kept[name] == 1 for name in ("Q4_0", "Q5_0", "Q8_0"))
if not whole or kept["Q4_1"] > 0.4 or kept["Q5_1"] > 0.4 or error["Q4_1"] < error["Q4_0"]:
    raise SystemExit("changed")
PY
