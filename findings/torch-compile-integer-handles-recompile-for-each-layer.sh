#!/usr/bin/env bash
# torch 2.13.0, Python 3.11. Seen 2026-11-27.
#
# Layers of one class and one shape, each compiled by itself (regional compilation), share one compiled graph. If a layer hands an integer
# of its own to a custom operator, such as a handle by which the operator finds its layer, each layer is compiled anew until the limit of
# recompilations, and all further layers run uncompiled. A 0-d tensor in place of the integer keeps the one graph.
# Guess before running: an integer argument of an opaque operator is passed on, since the operator's result is described without it.
# Seen: 12 layers: 8 compilations (then the limit) with an integer, 1 with a tensor.
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


@torch.library.custom_op("findings::by_int", mutates_args=())
def by_int(x: torch.Tensor, handle: int) -> torch.Tensor:
    return x * 2


@torch.library.custom_op("findings::by_tensor", mutates_args=())
def by_tensor(x: torch.Tensor, handle: torch.Tensor) -> torch.Tensor:
    return x * 2


by_int.register_fake(lambda x, handle: torch.empty_like(x))
by_tensor.register_fake(lambda x, handle: torch.empty_like(x))


class Layer(nn.Module):
    def __init__(self, operator, handle):
        super().__init__()
        self.operator, self.handle = operator, handle

    def forward(self, x):
        return self.operator(x, self.handle)


def compilations(operator, handles):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    for handle in handles:
        layer = Layer(operator, handle)
        layer.compile(backend=backend)
        layer(torch.ones(2))
    return len(graphs)


seen = compilations(by_int, range(12)), compilations(by_tensor, [torch.tensor(i) for i in range(12)])
print("compilations of 12 layers, integer and tensor handle:", seen)
if seen != (torch._dynamo.config.recompile_limit, 1):
    raise SystemExit("changed")
PY
