"""The paper: pure functions on one layer's tensors, where a layer is a matrix (N out, K in) and row n is neuron n.

The condensed form of a layer with a budget of B values (paper, section 3.2 and appendix on the condensed layer):
`values` (B,), `indices` (B,) integer, `active` (N,) bool. The i-th active row owns slots [i*k, (i+1)*k); its indices
ascend; unused slots, all at the end, have index -1. `scatter` and `gather` are inverse to each other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_srigl.rule.schedule import floor_count
from hf_srigl.rule.selection import largest, largest_per_row, score


def index_dtype(in_features: int) -> torch.dtype:
    """int16 where it can address every input, else int32.

    Example:
        >>> index_dtype(32767), index_dtype(32768)
        (torch.int16, torch.int32)
    """
    return torch.int16 if in_features <= 32767 else torch.int32


# --- condensed form <-> dense form -----------------------------------------------------------------------------------


def slot_positions(indices: Tensor, active: Tensor, in_features: int) -> Tensor:
    """Flat position n*K + k of every slot in the dense (N, K) matrix, int64 (B,); N*K for unused slots.

    Makes no host synchronisation: the fan-in and the rows are computed on the device.

    Example:
        >>> slot_positions(torch.tensor([0, 2, 1, 2, -1]), torch.tensor([True, False, True]), in_features=3)
        tensor([0, 2, 7, 8, 9])
    """
    n_out = active.shape[0]
    used = indices >= 0
    fan_in = (used.sum() // active.sum().clamp(min=1)).clamp(min=1)
    rank = torch.arange(indices.shape[0], device=indices.device) // fan_in
    active_rows = torch.argsort(active.logical_not(), stable=True)  # active rows first, in order
    row = active_rows[rank.clamp(max=n_out - 1)]
    return torch.where(used, row * in_features + indices, n_out * in_features)


def scatter(values: Tensor, indices: Tensor, active: Tensor, in_features: int) -> Tensor:
    """Condensed (B,) -> dense (N, K) of the same dtype, zeros elsewhere.

    Example:
        >>> indices, active = torch.tensor([0, 2, 1, 2]), torch.tensor([True, False, True])
        >>> scatter(torch.tensor([1.0, 2.0, 3.0, 4.0]), indices, active, in_features=3)
        tensor([[1., 0., 2.],
                [0., 0., 0.],
                [0., 3., 4.]])
    """
    size = active.shape[0] * in_features
    flat = values.new_zeros(size + 1)  # the last element takes what unused slots hold
    flat[slot_positions(indices, active, in_features)] = values
    return flat[:size].view(active.shape[0], in_features)


def gather(dense: Tensor, indices: Tensor, active: Tensor) -> Tensor:
    """Dense (N, K) -> condensed (B,) of the same dtype, zeros in unused slots.

    Example:
        >>> indices, active = torch.tensor([0, 2, 1, 2, -1]), torch.tensor([True, False, True])
        >>> gather(torch.arange(9.0).view(3, 3), indices, active)
        tensor([0., 2., 7., 8., 0.])
    """
    positions = slot_positions(indices, active, dense.shape[1])
    flat = dense.reshape(-1)
    return torch.where(indices >= 0, flat[positions.clamp(max=flat.shape[0] - 1)], flat.new_zeros(()))


def slot_sources(old: Tensor, new: Tensor, size: int) -> Tensor:
    """For each slot of the new topology the old slot of the same position, int64 (B,); -1 where there is none.

    ``where(s >= 0, t[s], 0)`` equals ``gather`` by the new topology of ``scatter`` by the old one, for every (B,) tensor t.

    Args:
        old, new: `slot_positions` of the two topologies, (B,). size: N * K, the position of unused slots.

    Example:
        >>> slot_sources(torch.tensor([0, 1, 4, 5]), torch.tensor([1, 2, 3, 5]), size=6)
        tensor([ 1, -1, -1,  3])
    """
    slot_at = torch.full((size + 1,), -1, dtype=torch.int32, device=old.device)
    slot_at[old] = torch.arange(old.shape[0], dtype=torch.int32, device=old.device)
    slot_at[-1] = -1  # where unused slots have written
    return slot_at[new].long()


def to_condensed(mask: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """A mask (N, K) with constant fan-in -> (indices (budget,), active (N,)).

    Raises:
        ValueError: the non-empty rows differ in fan-in, or hold more than `budget` values.

    Example:
        >>> to_condensed(torch.tensor([[True, False, True], [False, False, False], [False, True, True]]), budget=5)
        (tensor([ 0,  2,  1,  2, -1], dtype=torch.int16), tensor([ True, False,  True]))
    """
    rows, columns = mask.nonzero().unbind(1)
    per_row = torch.bincount(rows, minlength=mask.shape[0])
    active = per_row > 0
    fan_ins = per_row[active].unique()
    if fan_ins.numel() > 1:
        raise ValueError(f"expected one fan-in for all active rows, got {fan_ins.tolist()}")
    if columns.numel() > budget:
        raise ValueError(f"expected at most budget = {budget} values, got {columns.numel()}")
    indices = torch.full((budget,), -1, dtype=index_dtype(mask.shape[1]), device=mask.device)
    indices[: columns.numel()] = columns.to(indices.dtype)
    return indices, active


def to_mask(indices: Tensor, active: Tensor, in_features: int) -> Tensor:
    """The inverse of `to_condensed`: bool (N, K).

    Example:
        >>> to_mask(torch.tensor([0, 2, 1, 2, -1]), torch.tensor([True, False, True]), in_features=3).int()
        tensor([[1, 0, 1],
                [0, 0, 0],
                [0, 1, 1]], dtype=torch.int32)
    """
    return scatter(indices >= 0, indices, active, in_features)


def find_problem(indices: Tensor, active: Tensor, in_features: int) -> str | None:
    """What is wrong with a condensed topology, as "expected ..., found ..."; None if nothing is.

    Everything that a kernel would trust is checked: unused slots only at the end, index range, slots against active
    rows, order and uniqueness within a row. Used on whatever comes from outside, files above all.

    Example:
        >>> find_problem(torch.tensor([0, 2, 2, 1]), torch.tensor([True, True]), in_features=3)
        'indices must ascend within a row, found 1 after 2 in slot 3 (row 1)'
        >>> find_problem(torch.tensor([0, 2, 1, 2]), torch.tensor([True, True]), in_features=3) is None
        True
    """
    used = indices >= 0
    n_used, n_active = int(used.sum()), int(active.sum())
    if bool((indices < -1).any()) or bool((indices >= in_features).any()):
        bad = indices[(indices < -1) | (indices >= in_features)][0].item()
        return f"indices must be in [0, {in_features}) or -1 for an unused slot, found {bad}"
    if not bool(used[:n_used].all()):
        return f"unused slots (index -1) must all be at the end, found one among the first {n_used}"
    if n_active == 0:
        return "at least one row must be active, found none"
    if n_used == 0 or n_used % n_active != 0:
        return f"the used slots must divide evenly among the active rows, found {n_used} slots for {n_active} rows"
    fan_in = n_used // n_active
    rows = indices[:n_used].view(n_active, fan_in)
    wrong = rows[:, 1:] <= rows[:, :-1]
    if bool(wrong.any()):
        rank, column = (int(v) for v in wrong.nonzero()[0])
        before, after = int(rows[rank, column]), int(rows[rank, column + 1])
        row = int(active.nonzero()[rank])
        what = "differ" if before == after else "ascend"
        return (
            f"indices must {what} within a row, found {after} after {before} "
            f"in slot {rank * fan_in + column + 1} (row {row})"
        )
    return None


# --- initial topologies ----------------------------------------------------------------------------------------------


def magnitude_mask(weight: Tensor, fan_in: int) -> Tensor:
    """The `fan_in` largest ``|weight|`` of each row, ties to the lower column: bool (N, K).

    Example:
        >>> magnitude_mask(torch.tensor([[0.1, -3.0, 2.0], [1.0, 1.0, 1.0]]), fan_in=2).int()
        tensor([[0, 1, 1],
                [1, 1, 0]], dtype=torch.int32)
    """
    counts = torch.full((weight.shape[0],), fan_in, device=weight.device)
    return largest_per_row(score(weight), counts)


def trim_mask(weight: Tensor, mask: Tensor, fan_in: int) -> Tensor:
    """At most the `fan_in` largest ``|weight|`` of each row's active positions, ties to the lower column: bool (N, K).

    Example:
        >>> weight = torch.tensor([[0.1, -3.0, 2.0], [5.0, 1.0, 1.0]])
        >>> trim_mask(weight, torch.tensor([[True, True, True], [False, True, True]]), fan_in=1).int()
        tensor([[0, 1, 0],
                [0, 1, 0]], dtype=torch.int32)
    """
    return largest_per_row(score(weight).masked_fill(~mask, -1), mask.sum(1).clamp(max=fan_in))


def random_mask(shape: tuple[int, int], fan_in: int, generator: torch.Generator) -> Tensor:
    """`fan_in` random positions in each row, drawn on the CPU so that every device gets the same: bool (N, K).

    Example:
        >>> random_mask((2, 5), 3, torch.Generator().manual_seed(0)).sum(1)
        tensor([3, 3])
    """
    return magnitude_mask(torch.rand(shape, generator=generator), fan_in)


# --- the update rule -------------------------------------------------------------------------------------------------


def update_mask(
    weight: Tensor,
    mask: Tensor,
    grad: Tensor,
    *,
    budget: int,
    drop_fraction: float,
    min_salient: int | None = None,
) -> Tensor:
    """One SRigL topology update of one layer (paper, section 3 and algorithm 1; `docs/algorithm.md` goes through it).

    Args:
        weight: (N, K) float; only the values at active positions count.
        mask: (N, K) bool, the active positions; every row has the same fan-in or is empty (ablated).
        grad: (N, K) float, the dense gradient, averaged over micro-batches and ranks (its absolute value is taken here).
        budget: B, how many values the layer may hold.
        drop_fraction: share of the active weights to drop, in [0, 1].
        min_salient: rows with fewer salient weights are ablated; None ablates none.

    Returns:
        The new mask, (N, K) bool: fan-in ``min(K, B // active rows)`` in every active row. Ties go to the lower flat
        index. `weight` and `mask` are untouched.

    Raises:
        ValueError: shapes or dtypes differ from the above, the budget does not fit the layer, or a value that takes
            part in the decision is not finite.

    Example:
        >>> weight = torch.tensor([[3.0, 2.0, 0.0, 0.0], [0.0, 0.1, 0.2, 0.0]])
        >>> grad = torch.tensor([[0.0, 0.0, 0.1, 0.2], [9.0, 0.0, 0.0, 8.0]])
        >>> update_mask(weight, weight != 0, grad, budget=4, drop_fraction=0.5).int()
        tensor([[1, 1, 0, 0],
                [1, 0, 0, 1]], dtype=torch.int32)
    """
    _check_update(weight, mask, grad, budget, drop_fraction, min_salient)
    n_out, n_in = mask.shape
    magnitude, growth = score(weight), score(grad)
    for name, scores, matters in (("grad", growth, None), ("weight", magnitude, mask)):
        sound = bool(torch.isfinite(scores.max()))  # the maximum of a tensor with a NaN is NaN
        if not sound and (matters is None or not bool(torch.isfinite(scores[matters]).all())):
            raise ValueError(f"{name} must be finite for a topology update, got NaN or inf")

    nnz = int(mask.count_nonzero())
    n_drop = floor_count(drop_fraction * nnz)
    kept_at = largest(magnitude, mask, nnz - n_drop)
    candidates_at = largest(growth, ~mask, min(n_drop, n_out * n_in - nnz))

    if min_salient is None:
        stays = torch.ones(n_out, dtype=torch.bool, device=mask.device)
    else:
        salient = torch.bincount(torch.cat([kept_at, candidates_at]) // n_in, minlength=n_out)
        stays = salient >= min_salient
        min_rows = -(-budget // n_in)  # fewer rows could not hold the budget
        if int(stays.sum()) < min_rows:
            most_salient = largest(salient, torch.ones_like(stays), min_rows)
            stays = torch.zeros_like(stays).index_fill_(0, most_salient, True)
    n_active = int(stays.sum())
    if n_active > budget:
        raise ValueError(f"budget must hold at least one value for each of the {n_active} active rows, got {budget}")
    fan_in = min(n_in, budget // n_active)

    kept_at = kept_at[stays[kept_at // n_in]]
    kept = torch.zeros_like(mask)
    kept.view(-1)[kept_at] = True
    per_row = torch.bincount(kept_at // n_in, minlength=n_out)
    crowded = per_row > fan_in
    if bool(crowded.any()):
        per_row = per_row.clamp(max=fan_in)
        kept[crowded] = largest_per_row(torch.where(kept[crowded], magnitude[crowded], -1), per_row[crowded])
    return kept | largest_per_row(growth.masked_fill_(kept, -1), torch.where(stays, fan_in - per_row, 0))


def decisive_positions(
    mask: Tensor, grad: Tensor, *, budget: int, drop_fraction: float, min_salient: int | None = None
) -> Tensor:
    """The positions of a dense gradient that an update can depend on, whatever the weights will be: flat, ascending.

    With ``pruned = grad`` there and zero elsewhere, ``update_mask(w, mask, pruned, ...) == update_mask(w, mask, grad,
    ...)`` for every w. These are the active positions (a dropped weight may return), the candidates, and in each row as
    many of the largest inactive ones as the fan-in can become. The fan-in is bounded because rows with enough
    candidates stay in any case, and the others cannot all be short of kept weights. Kept instead of the dense gradient
    until the weights are known, they take a fraction of its memory.

    Args:
        As for `update_mask`; `grad` must be finite.

    Example:
        >>> mask = torch.tensor([[True, False, False, False], [True, False, False, False]])
        >>> grad = torch.tensor([[0.0, 3.0, 4.0, 5.0], [0.0, 1.0, 2.0, 0.0]])
        >>> decisive_positions(mask, grad, budget=2, drop_fraction=0.5)
        tensor([0, 3, 4, 6])
    """
    n_out, n_in = mask.shape
    growth, inactive = score(grad), ~mask
    nnz = int(mask.count_nonzero())
    n_drop = floor_count(drop_fraction * nnz)
    candidates_at = largest(growth, inactive, min(n_drop, n_out * n_in - nnz))
    per_row = mask.sum(1)
    if min_salient is None:
        min_active = n_out
    else:
        candidates = torch.bincount(candidates_at // n_in, minlength=n_out)
        stays = candidates >= min_salient
        # How many kept weights the other rows can hold while each is one salient weight short of staying
        short = torch.minimum(per_row, (min_salient - 1 - candidates).clamp(min=0))
        room = int(torch.where(stays, per_row, short).sum())
        gain = int(torch.where(stays, 0, per_row - short).max())
        overflow = nnz - n_drop - room  # kept weights that must sit in rows which thereby stay
        min_active = int(stays.sum()) + (-(-overflow // gain) if overflow > 0 and gain > 0 else 0)
        min_active = max(min_active, -(-budget // n_in), 1)
    max_fan_in = min(n_in, max(1, budget // min_active))
    decisive = mask | largest_per_row(growth.masked_fill_(mask, -1), (n_in - per_row).clamp(max=max_fan_in))
    decisive.view(-1)[candidates_at] = True
    return decisive.view(-1).nonzero().squeeze(1)


def _check_update(
    weight: Tensor, mask: Tensor, grad: Tensor, budget: int, drop_fraction: float, min_salient: int | None
) -> None:
    if mask.ndim != 2 or mask.dtype != torch.bool or 0 in mask.shape:
        raise ValueError(f"mask must be a non-empty (N, K) bool tensor, got {tuple(mask.shape)} {mask.dtype}")
    for name, tensor in (("weight", weight), ("grad", grad)):
        if tensor.shape != mask.shape or not tensor.is_floating_point():
            raise ValueError(
                f"{name} must be floating point of the mask's shape {tuple(mask.shape)}, "
                f"got {tuple(tensor.shape)} {tensor.dtype}"
            )
    if not 1 <= budget <= mask.numel():
        raise ValueError(f"budget must be between 1 and N * K = {mask.numel()}, got {budget}")
    if not 0 <= drop_fraction <= 1:
        raise ValueError(f"drop_fraction must be in [0, 1], got {drop_fraction}")
    if min_salient is not None and min_salient < 1:
        raise ValueError(f"min_salient must be at least 1, or None to ablate nobody, got {min_salient}")
