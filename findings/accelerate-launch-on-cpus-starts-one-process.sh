#!/usr/bin/env bash
# accelerate 1.15.0, torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# accelerate launch --cpu --num_processes 2 starts one process, exits with 0 and says nothing of the other. torchrun starts two, and the same
# script finds both.
# Guess before running: two processes on gloo.
# Seen: processes found: 1 with accelerate launch, 2 with torchrun.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet accelerate==1.15.0 numpy==2.4.6
cat > count.py <<'PY'
from accelerate import Accelerator

print("processes:", Accelerator(cpu=True).num_processes)
PY
launched=$(OMP_NUM_THREADS=1 venv/bin/accelerate launch --cpu --num_processes 2 count.py 2>/dev/null | sort -u)
torchrun=$(OMP_NUM_THREADS=1 venv/bin/torchrun --nproc_per_node 2 count.py 2>/dev/null | sort -u)
echo "accelerate launch: $launched; torchrun: $torchrun"
if [ "$launched" != "processes: 1" ] || [ "$torchrun" != "processes: 2" ]; then
    echo changed
    exit 1
fi
