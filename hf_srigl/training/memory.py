"""How many bytes a training holds: parameters, gradients, optimizer state, buffers, collected dense gradients."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn, optim

from hf_srigl.model.attachment import condensed_layers
from hf_srigl.ops.cpu.copies import kept_copy
from hf_srigl.training.optimizers import unwrap


def live_bytes(model: nn.Module, optimizer: optim.Optimizer) -> int:
    """Bytes of all tensors that training `model` keeps between forward passes, each storage counted once.

    Parameters, their gradients if present, buffers, the optimizer's state, and whatever condensed layers have collected
    of their dense gradients and keep as dense copies (`hf_srigl.ops.cpu.copies`) at this moment. Activations are not included.

    Example:
        >>> import torch
        >>> model = nn.Linear(10, 10, bias=False); adam = optim.AdamW(model.parameters())
        >>> model(torch.ones(1, 10)).sum().backward(); adam.step()
        >>> live_bytes(model, adam)  # weight, gradient, two moments of 400 bytes, and a step count
        1604
    """
    tensors: list[Tensor | None] = [*model.buffers()]
    for parameter in model.parameters():
        tensors += [parameter, parameter.grad]
        state = unwrap(optimizer).state.get(parameter, {})
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    for layer in condensed_layers(model).values():
        collected = layer.dense_grad
        tensors += [collected.pending, collected.value, collected.positions, collected.values, kept_copy(layer.weight)]
    return _bytes(tensor for tensor in tensors if tensor is not None)


def _bytes(tensors: Iterable[Tensor]) -> int:
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
