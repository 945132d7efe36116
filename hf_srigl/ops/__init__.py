"""One operator, `hf_srigl::condensed_linear`, registered with torch.library; `reference` is its definition.

On CPUs it runs on native kernels (`cpu`) where these are compiled in and cheaper, on NVIDIA GPUs on Triton kernels and
tensor cores (`cuda`); `choose` and `kernel_for` say which.

As a registered operator it is opaque to `torch.compile` (no graph break, no recompilation when the collection of the
dense gradient is switched on) and saves for backward only x, the values, the indices and the active rows. Calls that
nobody can observe as an operator (`_unobserved`: plain inference) skip PyTorch's dispatcher.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from hf_srigl.ops import choose, reference
from hf_srigl.ops.choose import kernel_for
from hf_srigl.ops.collect import collection
from hf_srigl.ops.cpu import calls as cpu
from hf_srigl.ops.cpu import copies
from hf_srigl.ops.cuda import calls as cuda
from hf_srigl.ops.cuda import choose_cuda
from hf_srigl.rule import topology

__all__ = ["condensed_linear", "condensed_linear_backward", "kernel_for"]


def condensed_linear(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    active: Tensor,
    bias: Tensor | None,
    handle: Tensor | None,
    keep_dense: bool = False,
) -> Tensor:
    """``y = x W^T + bias`` with W (N, K) in condensed form (`hf_srigl.rule.topology`).

    Args:
        x: (..., K), of the dtype of `weight`.
        weight: (B,) values. indices: (B,) int16 or int32. active: (N,) bool. bias: (N,) or None.
        handle: of the layer's `hf_srigl.ops.collect.DenseGradient`, a 0-d int64 CPU tensor; None where no gradient is
            wanted, so that a compiled inference graph has no input on the CPU.
        keep_dense: if the call needs no gradient and `weight` is a parameter too dense to gain from the kernels, a dense
            copy of it may be kept for the next call (`hf_srigl.ops.cpu.copies`).

    Returns:
        (..., N), contiguous, sharing no memory with the inputs. Gradients flow to x, weight and bias.

    Example:
        >>> indices, active = torch.tensor([0, 2, 1, 2], dtype=torch.int16), torch.tensor([True, False, True])
        >>> condensed_linear(torch.ones(1, 3), torch.tensor([1.0, 2.0, 3.0, 4.0]), indices, active, None, None)
        tensor([[3., 0., 7.]])
    """
    if forward_ad._current_level >= 0:
        raise NotImplementedError(
            "forward-mode differentiation (torch.func.jvp, torch.autograd.forward_ad) of a condensed layer is not implemented; "
            "densify() the model first"
        )
    if torch.onnx.is_in_onnx_export():
        raise NotImplementedError(
            "ONNX has no operator for a condensed layer: densify() the model before torch.onnx.export"
        )
    if not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None:
        raise NotImplementedError(
            "torch.func (grad, vjp, vmap, ...) over a condensed layer is not implemented; densify() the model first, or use "
            "loss.backward() or torch.autograd.grad"
        )
    if torch.compiler.is_compiling() or not _unobserved(x, weight, bias):
        return _operator(x, weight, indices, active, bias, handle)
    return _forward(x, weight, indices, active, bias, keep_dense and type(weight) is nn.Parameter)


def _unobserved(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether nothing needs to see this call as an operator: no gradient, tracer, mode, transform or tensor subclass.

    The operator's way through PyTorch's dispatcher costs 12 to 17 us, as much as a small product.
    """
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return False
    return (
        x.is_cpu
        and type(x) is Tensor
        and not x.is_neg()
        and (type(weight) is nn.Parameter or type(weight) is Tensor)
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._is_torch_function_mode_enabled()
        and torch._C._get_tracing_state() is None
    )


def _forward(x: Tensor, weight: Tensor, indices: Tensor, active: Tensor, bias: Tensor | None, may_keep: bool) -> Tensor:
    kernel = choose.implementation(x, weight, active, bias, may_keep)
    if kernel != "reference" and choose_cuda.concerns(x.device, choose.asked_for()):
        return cuda.forward(kernel, x, weight, indices, active, bias)
    if kernel == "cpu":
        return cpu.forward(x, weight, indices, active, bias)
    if kernel == "copy":
        return functional.linear(x, copies.dense_copy(weight, indices, active, x.shape[-1]), bias)
    return reference.forward(x, weight, indices, active, bias, cpu.scatter if kernel == "dense" else topology.scatter)


@torch.library.custom_op("hf_srigl::condensed_linear", mutates_args=())
def _operator(
    x: Tensor, weight: Tensor, indices: Tensor, active: Tensor, bias: Tensor | None, handle: Tensor | None
) -> Tensor:
    copies.forget(weight)  # training, most likely: a copy would soon be stale
    return _forward(x, weight, indices, active, bias, may_keep=False)


@_operator.register_fake
def _(x: Tensor, weight: Tensor, indices: Tensor, active: Tensor, bias: Tensor | None, handle: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], active.shape[0])


# Whether the dense gradient is wanted is asked at run time: never at the replay of a CUDA graph
@torch.library.custom_op("hf_srigl::condensed_linear_backward", mutates_args=(), tags=[torch.Tag.cudagraph_unsafe])
def condensed_linear_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    active: Tensor,
    need_x: bool,
    need_weight: bool,
    handle: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The gradients of `condensed_linear` to x and weight; see `reference.backward`."""
    kernel = choose.implementation(x, weight, active)
    if x.is_cuda:
        cuda.refuse_capture(handle)
    if kernel != "reference" and grad_y.dtype is x.dtype and choose_cuda.concerns(x.device, choose.asked_for()):
        return cuda.backward(grad_y, x, weight, indices, active, need_x, need_weight, handle)
    if kernel != "cpu" or grad_y.dtype is not x.dtype:
        scatter = cpu.scatter if kernel == "dense" else topology.scatter
        return reference.backward(grad_y, x, weight, indices, active, need_x, need_weight, handle, scatter)
    if not need_weight or collection(handle) is None:
        return cpu.backward(grad_y, x, weight, indices, active, need_x, need_weight)
    # A step that updates the topology: the dense gradient is wanted, and the values' gradient is a part of it
    grad_x, _ = cpu.backward(grad_y, x, weight, indices, active, need_x, False)
    _, grad_weight = reference.backward(grad_y, x, weight, indices, active, False, True, handle)
    return grad_x, grad_weight


@condensed_linear_backward.register_fake
def _(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    active: Tensor,
    need_x: bool,
    need_weight: bool,
    handle: Tensor | None,
) -> tuple[Tensor, Tensor]:
    grad_x = x.new_empty(x.shape) if need_x else x.new_empty(0)
    return grad_x, torch.empty_like(weight) if need_weight else weight.new_empty(0)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, indices, active, _, handle = inputs
    ctx.save_for_backward(x, weight, indices, active, handle)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, indices, active, handle = ctx.saved_tensors
    need_x, need_weight, _, _, need_bias, _ = ctx.needs_input_grad
    grad_x = grad_weight = grad_bias = None
    if need_x or need_weight:
        grads = condensed_linear_backward(grad_y, x, weight, indices, active, need_x, need_weight, handle)
        grad_x = grads[0] if need_x else None
        grad_weight = grads[1] if need_weight else None
    if need_bias:
        grad_bias = grad_y.reshape(-1, active.shape[0]).sum(0)
    return grad_x, grad_weight, None, None, grad_bias, None


_operator.register_autograd(_backward, setup_context=_save_for_backward)
