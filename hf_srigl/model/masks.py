"""Condensing a dense model under masks from elsewhere: masks of one's own, or the zeros its weights hold already."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.utils import logging

from hf_srigl.config import SRigLConfig
from hf_srigl.model.attachment import settle
from hf_srigl.model.conversion import condensed_like, dense_weight
from hf_srigl.model.places import places_of, replace
from hf_srigl.model.targets import sound_targets
from hf_srigl.rule.selection import largest_per_row
from hf_srigl.rule.topology import index_dtype


def condense_under(
    model: nn.Module,
    config: SRigLConfig,
    mask_of: Callable[[str, Tensor], Tensor | None],
    *,
    progress: bool = False,
) -> nn.Module:
    """`sparsify` with a topology of one's own: the target layers become condensed under given masks, values kept.

    Args:
        model, progress: as for `sparsify`.
        config: its targets say which layers; `sparsity`, `distribution` and `init` are only remembered, and a ramp or an
            unstructured start is left out of what the model carries.
        mask_of: (name, weight (N, K)) -> bool (N, K) on the weight's device, all rows alike in fan-in or empty (ablated); None
            leaves a layer dense.

    Raises:
        ValueError: as `sparsify`, or a mask is none of a condensed layer (`CondensedLinear.from_dense`).

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 2))
        >>> condense_under(model, SRigLConfig(sparsity=0.5), lambda name, weight: torch.eye(2, 4).bool())
        Sequential(
          (0): CondensedLinear(in_features=4, out_features=2, bias=True, fan_in=1, active=2/2)
        )
    """
    targets = sound_targets(model, config)
    # Given masks are constant in fan-in and final: nothing is to be trimmed on the way to some other sparsity
    config = dataclasses.replace(config, structure="constant_fan_in", ramp_until=None, ramp_from=0.0)
    places = places_of(model)
    for name, module in logging.tqdm(targets.items(), desc="Condensing layers", disable=not progress):
        weight = dense_weight(module)
        mask = mask_of(name, weight)
        if mask is None:
            continue
        try:
            layer = condensed_like(module, weight, mask)
        except ValueError as error:
            raise ValueError(f"layer {name}: {error}") from error
        replace(places, module, layer)
    settle(model, config)
    return model


@dataclass(frozen=True)
class ZerosInLayer:
    """What `condense_zeros` found in one layer of `neurons` rows and did with it.

    `nonzeros` are the weights other than 0; `fewest` and `most` of them in a row, rows of nothing but zeros (`empty`)
    aside. `slots` are the values stored: `most` for each row that is not empty. `condensed` is False for a layer that was
    left dense because its condensed form would not be smaller.
    """

    name: str
    neurons: int
    inputs: int
    nonzeros: int
    fewest: int
    most: int
    empty: int
    slots: int
    condensed: bool


def condense_zeros(model: nn.Module, config: SRigLConfig, *, progress: bool = False) -> tuple[ZerosInLayer, ...]:
    """Make a pruned dense model condensed, in place, without changing what it computes: where its weights are 0, nothing
    is stored.

    Condensed layers have one fan-in; pruned rows seldom do. No weight is lost: the fan-in of a layer is the largest number
    of non-zeros in one of its rows, and shorter rows are filled up with zeros (stored, and trainable like any other) at
    their lowest free columns. Rows of nothing but zeros become ablated neurons. Layers that would not shrink stay dense.

    Args:
        model: dense; pruning masks applied and removed (`torch.nn.utils.prune.remove`).
        config: tells the target layers. The model then carries it with `sparsity` as found over the condensed layers.

    Returns:
        What was found in each target layer, in model order.

    Raises:
        ValueError: as `sparsify`, or no layer has zeros enough; the model is unchanged then.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 3))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, 2, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 3, 0, 0, 0], [0] * 8]))
        >>> (layer,) = condense_zeros(model, SRigLConfig())
        >>> layer.nonzeros, layer.fewest, layer.most, layer.empty, layer.slots
        (3, 1, 2, 1, 4)
        >>> model[0]
        CondensedLinear(in_features=8, out_features=3, bias=True, fan_in=2, active=2/3)
    """
    found = tuple(_zeros_in(name, dense_weight(m)) for name, m in sound_targets(model, config).items())
    chosen = {layer.name for layer in found if layer.condensed}
    if not chosen:
        best = min(found, key=lambda layer: layer.most / layer.inputs)
        raise ValueError(
            f"no layer has zeros enough to become smaller: in {best.name}, the best of {len(found)}, some row has "
            f"{best.most} non-zeros of {best.inputs}, and every row would be stored as long as the longest; prune first, or "
            "let sparsify() take the largest weights of each row"
        )
    slots = sum(layer.slots for layer in found if layer.condensed)
    positions = sum(layer.neurons * layer.inputs for layer in found if layer.condensed)
    config = dataclasses.replace(config, sparsity=round(1 - slots / positions, 6), init="magnitude")
    condense_under(model, config, lambda name, w: mask_of_nonzeros(w) if name in chosen else None, progress=progress)
    return found


def mask_of_nonzeros(weight: Tensor) -> Tensor:
    """The smallest mask with one fan-in that holds every weight other than 0; rows of nothing but zeros are empty.

    A row with fewer non-zeros than the longest also gets its lowest free columns. A matrix of zeros gets its first position,
    since some neuron must be active.

    Example:
        >>> mask_of_nonzeros(torch.tensor([[0.0, 5.0, 6.0], [0.0, 0.0, 7.0], [0.0, 0.0, 0.0]])).int()
        tensor([[0, 1, 1],
                [1, 0, 1],
                [0, 0, 0]], dtype=torch.int32)
    """
    used = weight != 0
    per_row = used.sum(1)
    if not bool(per_row.any()):
        used[0, 0] = True
        return used
    free = used.logical_not().to(torch.float32).sub_(1)  # 0 where free, -1 (not eligible) where used
    return used | largest_per_row(free, torch.where(per_row > 0, per_row.max() - per_row, 0))


def _zeros_in(name: str, weight: Tensor) -> ZerosInLayer:
    n_out, n_in = weight.shape
    per_row = weight.count_nonzero(1)
    filled = per_row[per_row > 0]
    most = int(filled.max()) if filled.numel() else 0
    slots = max(1, most * filled.numel())
    budget = max(slots, n_out)  # as `condensed_like` will choose it
    index_bytes = torch.empty((), dtype=index_dtype(n_in)).element_size()
    size = budget * (weight.element_size() + index_bytes) + n_out
    return ZerosInLayer(
        name=name,
        neurons=n_out,
        inputs=n_in,
        nonzeros=int(per_row.sum()),
        fewest=int(filled.min()) if filled.numel() else 0,
        most=most,
        empty=n_out - filled.numel(),
        slots=slots,
        condensed=size < weight.numel() * weight.element_size(),
    )
