"""Parameters that FSDP2 (`fully_shard`) has spread over ranks: read whole and written in place, one at a time."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds a part of the tensor only.

    Example:
        >>> is_sharded(torch.zeros(3))
        False
    """
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, the same on all ranks; collective for a sharded one, which is left as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: Tensor) -> Tensor:
    """What this rank holds of the tensor; possibly empty."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def write(tensor: Tensor, new: Tensor) -> None:
    """Write the whole `new`, which every rank has, into a tensor that may be sharded; each rank keeps its part.

    Example:
        >>> tensor = torch.zeros(3); write(tensor, torch.arange(3.0)); tensor
        tensor([0., 1., 2.])
    """
    if isinstance(tensor, DTensor):
        mine = distribute_tensor(new, tensor.device_mesh, tensor.placements, src_data_rank=None)  # no communication
        tensor.to_local().copy_(mine.to_local())
    else:
        tensor.copy_(new)


def reshard(model: nn.Module) -> None:
    """Let FSDP2 take back parameters that a forward pass without a backward pass has left whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
