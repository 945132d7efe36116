#!/usr/bin/env bash
# torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# AveragedModel(use_buffers=True) takes the mean of integer buffers too and cuts it to an integer. Where a buffer holds positions (the
# columns of a sparse layer's values), the mean of two valid, ascending lists is again a valid ascending list, of positions that neither
# model had. Without use_buffers the positions are those of the last model and the values an average over several.
# Guess before running: integer buffers are copied, or refused.
# Seen: positions [0, 2, 8] and [4, 6, 9] average to [2, 4, 8].
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1
python3 -m venv venv
venv/bin/python -m pip install --quiet torch==2.13.0
venv/bin/python -m pip install --quiet numpy==2.4.6
venv/bin/python - <<'PY'
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.ones(3))
        self.register_buffer("columns", torch.tensor([0, 2, 8], dtype=torch.int16))


def averaged(use_buffers):
    model = Sparse()
    average = AveragedModel(model, use_buffers=use_buffers)
    average.update_parameters(model)
    with torch.no_grad():
        model.columns.copy_(torch.tensor([4, 6, 9]))
        model.values.fill_(3)
    average.update_parameters(model)
    return average.module.columns.tolist(), average.module.values.tolist()


seen = averaged(True), averaged(False)
print("columns and values with and without use_buffers:", *seen)
if seen != (([2, 4, 8], [2, 2, 2]), ([4, 6, 9], [2, 2, 2])):
    raise SystemExit("changed")
PY
