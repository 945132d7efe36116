"""Do all ranks hold the same topologies, the same layers, the same schedule? One number for each, compared at once.

A topology that differs between ranks ruins a run without a sign: gradients of different connections are averaged. The
comparison costs 8 bytes a layer, and every rank learns of a difference by the same exchange, so all stop together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from hf_srigl.layers.linear import CondensedLinear
from hf_srigl.processes import world_size

# The multipliers of splitmix64 (Steele, Lea, Flood, OOPSLA 2014) as signed numbers; int64 products wrap on every device
_MULTIPLIERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)


def fingerprint_of(layer: CondensedLinear) -> Tensor:
    """A number that depends on every index, every active row and their places; 0-d int64 on the layer's device.

    The same on every device and in any order of summation. Values do not count.

    Example:
        >>> weight = torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 4.0]])
        >>> layer = CondensedLinear.from_dense(weight, weight != 0)
        >>> same = CondensedLinear.from_dense(2 * weight, weight != 0)
        >>> other = CondensedLinear.from_dense(weight.flip(1), weight.flip(1) != 0)
        >>> [bool(fingerprint_of(layer) == fingerprint_of(one)) for one in (same, other)]
        [True, False]
    """
    total = torch.zeros((), dtype=torch.int64, device=layer.indices.device)
    for salt, tensor in enumerate((layer.indices, layer.active)):
        place = torch.arange(tensor.shape[0], device=tensor.device)
        total += _mixed((place << 33) + (tensor.long() << 1) + salt).sum()
    return total


def check_topologies(layers: Mapping[str, CondensedLinear], when: str) -> None:
    """Stop if some layer's topology is not the same on all ranks. Collective: all ranks raise, or none.

    Args:
        layers: name -> layer, alike on all ranks. when: for the message, such as "before the update of step 100".

    Raises:
        RuntimeError: naming the layers, and which ranks agree with which.
    """
    if world_size() == 1 or not layers:
        return
    device = next(iter(layers.values())).indices.device
    table = _of_all_ranks(torch.stack([fingerprint_of(layer).to(device) for layer in layers.values()]))
    different = [(name, column) for name, column in zip(layers, table.T.tolist(), strict=True) if len(set(column)) > 1]
    if different:
        name, column = different[0]
        more = f" (and {len(different) - 1} more layers, {different[1][0]} first)" if len(different) > 1 else ""
        raise RuntimeError(
            f"layer {name}{more}: expected one topology on all ranks {when}, found different ones: {_groups(column)}; "
            "something but SRigL changed the indices of a rank, or ranks loaded different checkpoints: start again from a "
            "checkpoint that all ranks can read"
        )


def check_facts(facts: Mapping[str, object], device: torch.device) -> None:
    """Stop if ranks differ in something the schedule depends on, by its ``repr``. Collective, as `check_topologies`.

    Raises:
        RuntimeError: naming the first fact that differs, this rank's value, and which ranks agree with which.
    """
    if world_size() == 1:
        return
    digests = [hashlib.blake2b(repr(value).encode(), digest_size=7).digest() for value in facts.values()]
    mine = torch.tensor([int.from_bytes(digest, "big") for digest in digests], device=device)
    for (name, value), column in zip(facts.items(), _of_all_ranks(mine).T.tolist(), strict=True):
        if len(set(column)) > 1:
            raise RuntimeError(
                f"expected the same {name} on all ranks, found different ones: {_groups(column)}; rank {dist.get_rank()} "
                f"has {str(value)[:200]}; give every rank the same model, configuration and checkpoint"
            )


def sizes(layers: Mapping[str, CondensedLinear]) -> dict[str, tuple[int, int, int]]:
    """Neurons, inputs and budget of every layer, for `check_facts`."""
    return {name: (layer.out_features, layer.in_features, layer.budget) for name, layer in layers.items()}


def _mixed(x: Tensor) -> Tensor:
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        x = (x ^ (x >> shift)) * multiplier
    return x ^ (x >> 31)


def _of_all_ranks(numbers: Tensor) -> Tensor:
    """(n,) int64 of each rank -> (ranks, n), the same on every rank."""
    everyone = [torch.empty_like(numbers) for _ in range(world_size())]
    dist.all_gather(everyone, numbers)
    return torch.stack(everyone)


def _groups(column: list[int]) -> str:
    """Which ranks hold the same number, the largest group first: "ranks 0, 2, 3 against rank 1"."""
    groups = [[rank for rank, number in enumerate(column) if number == value] for value in dict.fromkeys(column)]
    groups.sort(key=len, reverse=True)
    said = [f"rank{'s' * (len(group) > 1)} {', '.join(map(str, group))}" for group in groups]
    return " against ".join(said)
