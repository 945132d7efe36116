"""The native CPU kernels of the condensed layer, called through ctypes.

The shared library has a plain C interface (`src/condensed.h`), so one build serves every torch version. Tensors are
ordinary CPU tensors: x (..., K) and weight (B,) of the same dtype, float32 or bfloat16, indices (B,) int16 or int32,
active (N,) bool, bias (N,) of the same dtype or None. Sums are accumulated in float32. `ops.cpu.plans` checks the topology.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_srigl.ops.cpu import library
from hf_srigl.ops.cpu.plans import Plan, plan

DTYPES = {torch.float32: 0, torch.bfloat16: 1}


def same_types(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether x, the values and the bias are of one dtype and on one device, as the kernels want them."""
    same = weight.dtype is x.dtype and weight.device == x.device
    return same and (bias is None or (bias.dtype is x.dtype and bias.device == x.device))


def forward(x: Tensor, weight: Tensor, indices: Tensor, active: Tensor, bias: Tensor | None) -> Tensor:
    """``y = x W^T + bias``, (..., N); a fresh contiguous tensor."""
    shape = x.shape
    n_in = shape[-1]
    topology = plan(indices, active, n_in)
    dtype = DTYPES.get(x.dtype)
    if dtype is None or weight.dtype is not x.dtype or (bias is not None and bias.dtype is not x.dtype):
        raise TypeError(f"x, weight and bias must all be float32 or all bfloat16, got {x.dtype} and {weight.dtype}")
    _check_values(weight, topology)
    if bias is not None:
        if bias.shape != active.shape:
            raise ValueError(f"expected a bias of shape {tuple(active.shape)}, got {tuple(bias.shape)}")
        bias = bias.contiguous()
    weight = weight.contiguous()
    x, rows, stride = _rows(x, n_in)
    y = x.new_empty((*shape[:-1], topology.n_out))
    status = library.loaded().srigl_forward(
        topology.handle,
        indices.data_ptr(),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        x.data_ptr(),
        stride,
        y.data_ptr(),
        rows,
        dtype,
        torch.get_num_threads(),
    )
    library.check(status)
    return y


def backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, indices: Tensor, active: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    """``(grad_x, grad_weight)``; 0 in unused slots, and an empty tensor for a gradient that is not needed."""
    shape = x.shape
    n_in = shape[-1]
    topology = plan(indices, active, n_in)
    dtype = DTYPES.get(grad_y.dtype)
    if dtype is None or weight.dtype is not grad_y.dtype or x.dtype is not grad_y.dtype:
        raise TypeError(
            f"grad_y, x and weight must all be float32 or all bfloat16, got {grad_y.dtype}, {x.dtype}, {weight.dtype}"
        )
    _check_values(weight, topology)
    if grad_y.shape != (*shape[:-1], topology.n_out):
        raise ValueError(
            f"expected grad_y of shape {(*shape[:-1], topology.n_out)} for x of shape {tuple(shape)}, "
            f"got {tuple(grad_y.shape)}"
        )
    weight = weight.contiguous()
    grad_y, rows, grad_stride = _rows(grad_y, topology.n_out)
    x_pointer, x_stride = None, 0
    if need_weight:
        x, _, x_stride = _rows(x, n_in)
        x_pointer = x.data_ptr()
    grad_x = grad_y.new_empty(shape if need_x else 0)
    grad_weight = torch.empty_like(weight) if need_weight else weight.new_empty(0)
    status = library.loaded().srigl_backward(
        topology.handle,
        indices.data_ptr(),
        weight.data_ptr(),
        grad_y.data_ptr(),
        grad_stride,
        x_pointer,
        x_stride,
        grad_x.data_ptr() if need_x else None,
        grad_weight.data_ptr() if need_weight else None,
        rows,
        dtype,
        torch.get_num_threads(),
    )
    library.check(status)
    return grad_x, grad_weight


def scatter(weight: Tensor, indices: Tensor, active: Tensor, n_in: int) -> Tensor:
    """The dense W (N, K): what `hf_srigl.rule.topology.scatter` computes."""
    topology = plan(indices, active, n_in)
    if weight.dtype not in DTYPES:
        raise TypeError(f"weight must be float32 or bfloat16, got {weight.dtype}")
    _check_values(weight, topology)
    weight = weight.contiguous()
    dense = weight.new_empty((topology.n_out, n_in))
    status = library.loaded().srigl_scatter(
        topology.handle,
        indices.data_ptr(),
        weight.data_ptr(),
        dense.data_ptr(),
        DTYPES[weight.dtype],
        torch.get_num_threads(),
    )
    library.check(status)
    return dense


def _check_values(weight: Tensor, topology: Plan) -> None:
    if weight.dim() != 1 or weight.numel() != topology.slots:
        raise ValueError(f"expected a weight of shape ({topology.slots},), got {tuple(weight.shape)}")


def _rows(x: Tensor, width: int) -> tuple[Tensor, int, int]:
    """x itself, or a copy of which the kernels can read (rows, width): the tensor, the number of rows, their stride."""
    if x.dim() == 2 and x.stride(1) == 1:
        return x, x.shape[0], x.stride(0)
    x = x.contiguous()
    return x, x.numel() // width, width
