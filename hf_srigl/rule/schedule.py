"""Is it an update step? How much is dropped? Plain arithmetic on step numbers (paper, section 3 and appendix)."""

from __future__ import annotations

import math
from collections.abc import Iterable


def floor_count(value: float) -> int:
    """Floor of a product that is whole up to float error: ``0.29 * 100`` is 29, not 28.

    Example:
        >>> floor_count(100 * (1 - 0.9)), int(100 * (1 - 0.9))
        (10, 9)
    """
    return math.floor(round(value, 9))


def update_interval(update_every: float | None, total_steps: int) -> int | None:
    """Steps between updates (Delta T); a value below 1 is a share of `total_steps`, rounded up as TrainingArguments do.

    Example:
        >>> update_interval(100, 1000), update_interval(0.04, 269), update_interval(None, 1000)
        (100, 11, None)
    """
    if update_every is None:
        return None
    if update_every < 1:
        return max(1, math.ceil(round(update_every * total_steps, 9)))
    return int(update_every)


def is_update_step(
    step: int, *, interval: int | None, stop_updates_at: float, total_steps: int, offset: int = 0
) -> bool:
    """Whether the topology changes right after optimizer step number `step` (1-based, micro-batches not counted).

    With `offset` 0: ``step % interval == 0`` and ``step < stop_updates_at * total_steps``. A staggered layer updates
    `offset` steps later, and like every other layer not before it has trained for one interval.

    Example:
        >>> [t for t in range(1, 13) if is_update_step(t, interval=3, stop_updates_at=0.75, total_steps=12)]
        [3, 6]
        >>> [t for t in range(1, 13) if is_update_step(t, interval=3, stop_updates_at=1.0, total_steps=12, offset=1)]
        [4, 7, 10]
    """
    if interval is None:
        return False
    since = step - offset
    return since >= interval and since % interval == 0 and step < round(stop_updates_at * total_steps, 9)


def update_steps(
    *,
    interval: int | None,
    stop_updates_at: float,
    total_steps: int,
    offsets: Iterable[int] = (0,),
    end: int | None = None,
) -> list[int]:
    """All steps after which some topology changes, ascending: `is_update_step` for layers with these offsets.

    Args:
        end: the last step of a sparsity ramp, which always updates.

    Example:
        >>> update_steps(interval=3, stop_updates_at=0.75, total_steps=12), update_steps(
        ...     interval=3, stop_updates_at=0.75, total_steps=12, offsets=[0, 1], end=11)
        ([3, 6], [3, 4, 6, 7, 11])
    """
    steps = set() if end is None else {end}
    if interval is not None:
        before = math.ceil(round(stop_updates_at * total_steps, 9))
        steps.update(t for offset in set(offsets) for t in range(interval + offset, before, interval))
    return sorted(steps)


def drop_fraction_at(step: int, *, drop_fraction: float, stop_updates_at: float, total_steps: int) -> float:
    """Share of active weights dropped at `step`: ``alpha / 2 * (1 + cos(pi * step / (stop_updates_at * total_steps)))``.

    Example:
        >>> drop_fraction_at(50, drop_fraction=0.3, stop_updates_at=1.0, total_steps=100)
        0.15
    """
    progress = min(1.0, step / (stop_updates_at * total_steps))
    return drop_fraction / 2 * (1 + math.cos(math.pi * progress))


def ramp_end(ramp_until: float, total_steps: int) -> int:
    """The step after which the ramp has reached its target.

    Example:
        >>> ramp_end(0.6, 269)
        162
    """
    return max(1, math.ceil(round(ramp_until * total_steps, 9)))


def ramp_fan_in(step: int, *, first: int, last: int, end: int) -> int:
    """Fan-in of a layer after `step`, on its cubic way from `first` to `last` (Zhu and Gupta, arXiv 1710.01878, eq. 1).

    Example:
        >>> [ramp_fan_in(t, first=100, last=10, end=4) for t in range(6)]
        [100, 48, 21, 11, 10, 10]
    """
    left = max(0.0, 1 - step / end)
    return last + round(round((first - last) * left**3, 9))


def stagger_offsets(n_layers: int, interval: int) -> list[int]:
    """Offsets in [0, interval) that spread `n_layers` updates evenly over one interval.

    Example:
        >>> stagger_offsets(4, 100), stagger_offsets(4, 2)
        ([0, 25, 50, 75], [0, 0, 1, 1])
    """
    return [layer * interval // n_layers for layer in range(n_layers)]
