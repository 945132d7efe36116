"""The dense gradients of an update: averaged over ranks, and whether they can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hf_srigl.layers import shards
from hf_srigl.layers.linear import CondensedLinear
from hf_srigl.processes import any_rank, world_size
from hf_srigl.training import sharding


def average(
    layers: Mapping[str, CondensedLinear], due: Sequence[str], places: Mapping[str, int]
) -> tuple[list[str], int]:
    """Average the dense gradients of the layers due, one at a time, each on the rank that will decide for the layer.

    The others let go of theirs. Collective.

    Args:
        layers: name -> layer. due: their names. places: name -> the place that `sharding.is_mine` turns into a rank.

    Returns:
        The names of the layers that took part in a backward pass on any rank, and the bytes this rank gave.
    """
    gradients = {name: layers[name].dense_grad for name in due}
    device = layers[due[0]].weight.device
    flags = [gradient.seen for gradient in gradients.values()]
    seen = any_rank(torch.tensor(flags, device=device))
    used = [name for name, was_seen in zip(due, seen.tolist(), strict=True) if was_seen]
    given = 0
    for name in used if world_size() > 1 else []:
        layer, gradient = layers[name], gradients[name]
        if gradient.value is None:  # this rank's batches did not reach the layer, another rank's did
            shape = (layer.out_features, layer.in_features)
            dtype = torch.promote_types(layer.weight.dtype, torch.float32)
            gradient.value = torch.zeros(shape, dtype=dtype, device=layer.weight.device)
        given += sharding.mean_at_owner(gradient.value, places[name])
        if not sharding.is_mine(places[name]):
            gradient.stop()
    return used, given


def all_sound(layers: Mapping[str, CondensedLinear], due: Sequence[str]) -> bool:
    """Whether weights and gradients of the layers due are finite: one decision for all layers and ranks. Collective."""
    device = next(iter(layers.values())).weight.device
    bad = torch.zeros(1, dtype=torch.bool, device=device)
    for name in due:
        layer = layers[name]
        values = [layer.weight.detach()] + ([] if layer.weight.grad is None else [layer.weight.grad])
        parts = [part for part in map(shards.part, values) if part.numel()]
        for finite in (*(torch.isfinite(part.abs().max()) for part in parts), layer.dense_grad.is_finite()):
            bad |= ~finite.to(device)
    return not bool(any_rank(bad).any())
