"""The operator on CUDA devices: few rows on a Triton kernel, otherwise a transient dense matrix and tensor cores.

The matrix is scattered in the dtype of x (the compute dtype under autocast) and again for backward, never kept between the
two. Nothing here waits for the GPU, but on the steps that update a topology, where the update itself does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_srigl.ops import reference
from hf_srigl.ops.collect import watched
from hf_srigl.ops.cuda import choose_cuda


def forward(kernel: str, x: Tensor, weight: Tensor, indices: Tensor, active: Tensor, bias: Tensor | None) -> Tensor:
    """``y = x W^T + bias`` with `kernel`, "triton" or "dense"; see `hf_srigl.ops.cuda.choose_cuda`."""
    kernels = choose_cuda.kernels()
    if kernel == "triton":
        return kernels.forward(x, weight, indices.contiguous(), active, bias)
    return reference.forward(x, weight, indices, active, bias, kernels.scatter)


def backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    active: Tensor,
    need_x: bool,
    need_weight: bool,
    handle: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The gradients through dense products, whatever the number of rows; see `hf_srigl.ops.reference.backward`."""
    kernels = choose_cuda.kernels()
    return reference.backward(
        grad_y, x, weight, indices, active, need_x, need_weight, handle, kernels.scatter, kernels.gather
    )


def refuse_capture(handle: Tensor | None) -> None:
    """No CUDA graph may hold the backward pass of a layer whose topology is trained.

    Replaying it would not ask whether the dense gradient is wanted, and the topology would never change, silently.

    Raises:
        RuntimeError: a CUDA graph is being captured and a `hf_srigl.SRigL` trains the layer.
    """
    if watched(handle) and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a CUDA graph is capturing the backward pass of a layer whose topology SRigL updates: at replay no dense "
            "gradient would be collected. Use torch.compile(mode='reduce-overhead'), which leaves this operator out of "
            "its graphs, or capture the forward pass only; for a topology that stays as it is, call close() on the SRigL"
        )
