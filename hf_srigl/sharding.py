"""What several processes have to agree on: the same dense gradients, the same decision, the same topology.

Supported: one process, and data parallelism with whole parameters on every rank (DDP). Without an initialised process
group of more than one rank every function here does nothing.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from hf_srigl.linear import CondensedLinear


def world_size() -> int:
    """Number of ranks that train together; 1 without `torch.distributed`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def check_whole(layers: dict[str, CondensedLinear]) -> None:
    """Refuse sharded parameters.

    Raises:
        ValueError: a layer's parameter is a DTensor (FSDP2, tensor parallelism) or was flattened away (FSDP1).
    """
    for name, layer in layers.items():
        sharded = isinstance(layer.weight, DTensor) or layer.weight.shape != layer.indices.shape
        if sharded:
            raise ValueError(
                f"layer {name}: expected a whole weight of shape {tuple(layer.indices.shape)} on every rank, found it "
                "sharded; train condensed models with DDP (they need a fraction of the memory), not FSDP or tensor parallelism"
            )


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean of a float tensor over all ranks, in place."""
    ranks = world_size()
    if ranks > 1:
        dist.all_reduce(tensor)
        tensor /= ranks
    return tensor


def any_rank(flags: Tensor) -> Tensor:
    """Elementwise "is it so on at least one rank", bool in and out."""
    if world_size() == 1:
        return flags
    counts = flags.to(torch.int32)
    dist.all_reduce(counts)
    return counts > 0


def broadcast_topology(layer: CondensedLinear) -> None:
    """Give every rank rank 0's indices and active rows (as bytes: gloo and NCCL know no int16).

    Through a copy: a broadcast into the tensor itself would not count as a write, by which kernels know a new topology.
    """
    if world_size() > 1:
        for tensor in (layer.indices, layer.active):
            copy = tensor.clone()
            dist.broadcast(copy.view(torch.uint8), src=0)
            tensor.copy_(copy)


def broadcast_mask(mask: Tensor) -> Tensor:
    """Rank 0's mask on every rank, in place."""
    if world_size() > 1:
        dist.broadcast(mask.view(torch.uint8), src=0)
    return mask
