#!/usr/bin/env bash
# torch 2.13.0, safetensors 0.8.0, fsspec 2026.9.0, Python 3.11. Seen 2026-11-27.
#
# torch.distributed.checkpoint's HuggingFaceStorageWriter writes shards in safetensors and can join them into one file. Joining zeroes
# every 0-d tensor without a word: a learned scale (CLIP's logit_scale, say) of 3 is 0 in the joined file, and right in the shards.
# Guess before running: joining copies bytes and cannot change a value.
# Seen: shard 3.0, joined file 0.0, read back by HuggingFaceStorageReader 0.0; matrices are right everywhere.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet safetensors==0.8.0 fsspec==2026.9.0 numpy==2.4.6
venv/bin/python - <<'PY'
import glob
import warnings

warnings.simplefilter("ignore")
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

state = {"logit_scale": torch.tensor(3.0), "matrix": torch.ones(2, 2)}
writer = HuggingFaceStorageWriter(
    "out", fqn_to_index_mapping=dict.fromkeys(state, 1), save_distributed=True, enable_consolidation=True
)
dcp.save(state, storage_writer=writer, no_dist=True)
again = {name: torch.full_like(tensor, -1) for name, tensor in state.items()}
dcp.load(again, storage_reader=HuggingFaceStorageReader("out"), no_dist=True)
(shard,), (joined,) = glob.glob("out/sharded/*.safetensors"), glob.glob("out/*.safetensors")
read = {"shard": load_file(shard), "joined": load_file(joined), "read back": again}
print({where: float(tensors["logit_scale"]) for where, tensors in read.items()})
matrices = all(torch.equal(tensors["matrix"], state["matrix"]) for tensors in read.values())
if [float(tensors["logit_scale"]) for tensors in read.values()] != [3.0, 0.0, 0.0] or not matrices:
    raise SystemExit("changed")
PY
