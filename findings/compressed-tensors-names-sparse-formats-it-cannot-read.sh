#!/usr/bin/env bash
# compressed-tensors 0.20.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# The formats that config.json may name still list the sparse ones (sparse-bitmask, sparse-24-bitmask, marlin-24), and no compressor for them is
# left: a file of an earlier version names a format that the enumeration accepts and nothing can read.
# Guess before running: each format that the enumeration has can be read, or is gone from it.
# Seen: named and without a compressor: marlin-24, sparse-24-bitmask, sparse-bitmask (and mixed-precision, which stands for several).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet compressed-tensors==0.20.0 numpy==2.4.6
venv/bin/python - <<'PY'
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.config import CompressionFormat

named = {form.value for form in CompressionFormat}
orphans = sorted(named - set(BaseCompressor.registered_names()))
print(orphans)
if orphans != ["marlin-24", "mixed-precision", "sparse-24-bitmask", "sparse-bitmask"]:
    raise SystemExit("changed")
PY
