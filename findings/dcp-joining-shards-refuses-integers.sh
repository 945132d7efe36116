#!/usr/bin/env bash
# torch 2.13.0, safetensors 0.8.0, fsspec 2026.9.0, Python 3.11. Seen 2026-11-27.
#
# The same writer that joins shards (HuggingFaceStorageWriter with enable_consolidation) fails on every integer and boolean tensor, after
# the shards are written: it asks torch.finfo for their width. Without joining all of them are saved and read back. A model with
# an index or a mask among its buffers can therefore be written by ranks but not made one file.
# Guess before running: joining takes what sharding takes.
# Seen: float32, bfloat16, float8 joined; int16, int64, uint8, bool: CheckpointException "torch.finfo() requires a floating point".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet safetensors==0.8.0 fsspec==2026.9.0 numpy==2.4.6
venv/bin/python - <<'PY'
import logging
import warnings

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException


def outcome(dtype, join):
    folder = f"{dtype}{join}"
    writer = HuggingFaceStorageWriter(
        folder, fqn_to_index_mapping={"t": 1}, save_distributed=True, enable_consolidation=join
    )
    try:
        dcp.save({"t": torch.ones(4).to(dtype)}, storage_writer=writer, no_dist=True)
    except CheckpointException as error:
        return "finfo" if "torch.finfo() requires a floating point" in str(error) else "another error"
    return "written"


floats = (torch.float32, torch.bfloat16, torch.float8_e4m3fn)
whole = (torch.int16, torch.int64, torch.uint8, torch.bool)
seen = {str(dtype): [outcome(dtype, join) for join in (False, True)] for dtype in (*floats, *whole)}
print(seen)
wanted = {str(d): ["written", "written"] for d in floats} | {str(d): ["written", "finfo"] for d in whole}
if seen != wanted:
    raise SystemExit("changed")
PY
