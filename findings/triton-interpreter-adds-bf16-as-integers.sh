#!/usr/bin/env bash
# triton 3.9.0, torch 2.13.0, Python 3.11, TRITON_INTERPRET=1. Seen 2026-11-27.
#
# In Triton's interpreter a sum of two bfloat16 values is the sum of their bit patterns (1 + 2 gives infinity), and a cast to bfloat16 cuts the
# low bits off instead of rounding. A kernel that accumulates in float32 is unaffected but for its last cast; tests of rounding there
# say nothing about a GPU.
# Guess before running: the interpreter computes bfloat16 by way of float32 and rounds, as hardware does.
# Seen: 1 + 2 = inf; 1.0078063 cast to bfloat16: 1.0 (torch: 1.0078125).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1 TRITON_INTERPRET=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet triton==3.9.0 numpy==2.4.6
cat > kernels.py <<'PY'
import torch
import triton
import triton.language as tl


@triton.jit
def add(a, b, out):
    tl.store(out, tl.load(a) + tl.load(b))


@triton.jit
def cast(x, out):
    tl.store(out, tl.load(x).to(tl.bfloat16))


total, rounded = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.bfloat16)
add[(1,)](torch.tensor([1.0]).bfloat16(), torch.tensor([2.0]).bfloat16(), total)
x = torch.tensor([1.0078063])
cast[(1,)](x, rounded)
print(f"1 + 2 = {float(total)}; {float(x)} -> {float(rounded)}, torch {float(x.bfloat16())}")
if (float(total), float(rounded), float(x.bfloat16())) != (float("inf"), 1.0, 1.0078125):
    raise SystemExit("changed")
PY
venv/bin/python kernels.py
