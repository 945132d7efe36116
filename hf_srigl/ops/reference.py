"""The definition of the operator, readable and on any device: scatter to a transient dense matrix, then a GEMM.

Shapes: x (..., K), weight (B,), indices (B,), active (N,), bias (N,) or None, y (..., N). Nothing here is ever of size
rows * N * k; the dense (N, K) matrix lives only inside one call. Kernels are tested against this file.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hf_srigl.ops.collect import collection
from hf_srigl.rule import topology

Scatter = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # `topology.scatter`, or a kernel that computes the same
Gather = Callable[[Tensor, Tensor, Tensor], Tensor]  # `topology.gather`, likewise


def forward(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    active: Tensor,
    bias: Tensor | None,
    scatter: Scatter = topology.scatter,
) -> Tensor:
    """``y = x W^T + bias``, a fresh contiguous tensor (some models write into a linear layer's output in place)."""
    dense = scatter(weight, indices, active, x.shape[-1])  # (N, K)
    y = x.new_empty(*x.shape[:-1], active.shape[0])
    rows, out = x.reshape(-1, x.shape[-1]), y.view(-1, active.shape[0])  # (M, K), (M, N)
    if bias is None:
        torch.mm(rows, dense.t(), out=out)
    else:
        torch.addmm(bias, rows, dense.t(), out=out)
    return y


def backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    active: Tensor,
    need_x: bool,
    need_weight: bool,
    handle: Tensor | None,
    scatter: Scatter = topology.scatter,
    gather: Gather = topology.gather,
) -> tuple[Tensor, Tensor]:
    """``(grad_x, grad_weight)``; an empty tensor stands for a gradient that is not needed.

    On the steps that collect it, the dense gradient ``grad_y^T x`` (N, K) goes to the layer's `DenseGradient` too.
    """
    rows = x.reshape(-1, x.shape[-1])  # (M, K)
    grad_rows = grad_y.reshape(-1, active.shape[0])  # (M, N)
    grad_x, grad_weight = x.new_empty(0), weight.new_empty(0)
    if need_x:
        dense = scatter(weight, indices, active, x.shape[-1])
        grad_x = x.new_empty(x.shape)
        torch.mm(grad_rows, dense, out=grad_x.view(-1, x.shape[-1]))
        del dense  # before the next dense matrix exists
    if need_weight:
        dense_grad = grad_rows.t() @ rows  # (N, K)
        grad_weight = gather(dense_grad, indices, active)
        collecting = collection(handle)
        if collecting is not None:
            collecting.add(dense_grad)
    return grad_x, grad_weight
