"""Measuring time on a machine that does other things too: calls in turns, medians, what the machine is."""

from __future__ import annotations

import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

Call = Callable[[], object]


def alternate(
    calls: Mapping[str, Call], seconds: float, at_least: int = 5, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median time in seconds of each call, taken in turns, so that whatever disturbs the machine disturbs them all.

    The order changes from round to round (the same on every run): a call finds in the caches what its predecessor left.

    Args:
        calls: by name; each is called once more beforehand, to warm up.
        seconds: about how long to go on, times the number of calls.
        at_least: rounds, however long they take.
        clock: what is measured; `time.thread_time` counts only the time that the calling thread was running.

    Example:
        >>> times = alternate({"short": lambda: sum(range(10)), "long": lambda: sum(range(100_000))}, seconds=0.01)
        >>> times["short"] < times["long"]
        True
    """
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    rounds, end = 0, time.perf_counter() + seconds * len(calls)
    while rounds < at_least or time.perf_counter() < end:
        shuffle(order)
        for name in order:
            start = clock()
            calls[name]()
            times[name].append(clock() - start)
        rounds += 1
    return {name: statistics.median(kept) for name, kept in times.items()}


def clock_for(threads: int) -> Callable[[], float]:
    """The clock for calls on so many threads: the processor time of the calling thread if it is the only one.

    With one thread both clocks agree on a quiet machine, and processor time leaves out the turns of other programs. With
    several only the wall clock says when the last of them was done.
    """
    return time.thread_time if threads == 1 else time.perf_counter


def geometric_mean(values: Iterable[float]) -> float:
    """The mean that treats twice as fast and half as fast alike.

    Example:
        >>> geometric_mean([2.0, 0.5])
        1.0
    """
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def processor() -> str:
    """The processor's name and its widest vector instructions, where Linux tells."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    name = next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "?")
    vectors = next((isa for isa in ("avx512f", "avx2", "asimd") if isa in text), "no vector unit named")
    return f"{name}, {vectors}, {os.cpu_count()} cores"


def versions(*packages: str) -> str:
    """Names and versions of installed packages, for the head of a table."""
    return ", ".join(f"{package} {version(package)}" for package in packages)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table.

    Example:
        >>> print(table(["rows", "us"], [["1", "77"]]))
        | rows | us |
        |---|---|
        | 1 | 77 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "|" + "|".join(cells) + "|" if cells[0] == "---" else f"| {' | '.join(cells)} |" for cells in lines
    )
