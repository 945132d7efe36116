"""What a training is about to do to the topology of its model, in one line."""

from __future__ import annotations

import math
from collections.abc import Sequence

FEW_UPDATES = 10


def describe(
    *, layers: int, now: float, target: float, reached_at: int | None, updates: Sequence[int], total_steps: int
) -> str:
    """The plan of a training.

    Args:
        layers: number of condensed layers. now, target: their sparsity at the start and asked for. reached_at: the step at
            which a ramp reaches it; None without one. updates: steps that change a topology, ascending.

    Example:
        >>> print(describe(layers=13, now=0.9, target=0.9, reached_at=None, updates=[100, 200, 300], total_steps=400))
        13 condensed layers, 90.0% sparse; 3 topology updates in 400 steps: after 100, 200 and 300
        >>> print(describe(layers=1, now=0.0, target=0.8, reached_at=60, updates=range(4, 64, 4), total_steps=100))
        1 condensed layer, 0.0% sparse, on a ramp to 80.0% at step 60; 15 topology updates in 100 steps: after 4, 8, ..., 60
        >>> print(describe(layers=2, now=0.5, target=0.5, reached_at=None, updates=[], total_steps=10))
        2 condensed layers, 50.0% sparse; no topology update in 10 steps: the topology is static
    """
    ramp = "" if reached_at is None else f", on a ramp to {target:.1%} at step {reached_at}"
    stands = f"{layers} condensed layer{'s'[: layers != 1]}, {now:.1%} sparse{ramp}"
    if not updates:
        return f"{stands}; no topology update in {total_steps} steps: the topology is static"
    several = f"{len(updates)} topology update{'s'[: len(updates) != 1]} in {total_steps} steps"
    return f"{stands}; {several}: after {_steps(updates)}"


def too_few(update_every: float | None, stop_updates_at: float, total_steps: int, interval: int) -> str | None:
    """What to say of a run with fewer than `FEW_UPDATES` topology updates; None if there are enough.

    Example:
        >>> too_few(100, 0.75, 10_000, 100) is None, too_few(100, 0.75, 300, 100)[:52]
        (True, 'update_every=100 leaves 2 topology updates in 300 st')
    """
    updates = math.ceil(round(stop_updates_at * total_steps, 9) / interval) - 1
    if updates >= FEW_UPDATES:
        return None
    return (
        f"update_every={update_every} leaves {max(0, updates)} topology updates in {total_steps} steps, too few to find a good "
        f"topology; a share of the steps such as update_every=0.04 gives {math.ceil(stop_updates_at / 0.04) - 1}"
    )


def _steps(updates: Sequence[int]) -> str:
    if len(updates) > 4:
        return f"{updates[0]}, {updates[1]}, ..., {updates[-1]}"
    *first, last = map(str, updates)
    return f"{', '.join(first)} and {last}" if first else last
