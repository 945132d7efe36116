"""How many processes train together, and what they may ask each other. A single process asks nobody.

Everything here is collective: all ranks call it, in the same order.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of ranks that train together; 1 without `torch.distributed`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


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
