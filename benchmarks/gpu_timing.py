"""Shared by the GPU benchmarks: the sizes of a whole and of a dry run, and how calls are timed on a GPU."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Call = Callable[[], object]
FLUSH_BYTES = 1 << 30  # twenty times the L2 of an H100; writing it also gives the host time to enqueue the call timed


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    device: str
    shapes: tuple[tuple[int, int], ...]  # out x in
    rows: tuple[int, ...]
    sparsities: tuple[float, ...]
    repeats: int
    shrink: int  # models are this much smaller
    tokens: int  # generated
    batch: tuple[int, int]  # of training: sequences, tokens each
    steps: int
    update_every: int

    @staticmethod
    def whole() -> Sizes:
        shapes = ((4096, 4096), (4096, 11008), (11008, 4096), (3072, 768), (768, 3072))
        rows = (1, 2, 4, 8, 16, 32, 64, 256, 4096)
        return Sizes("cuda", shapes, rows, (0.8, 0.9, 0.95), 25, 1, 128, (4, 1024), 8, 4)

    @staticmethod
    def dry() -> Sizes:
        return Sizes("cpu", ((12, 20),), (1, 4, 40), (0.8, 0.9), 1, 128, 2, (1, 8), 0, 2)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16


def synchronize(sizes: Sizes) -> None:
    if sizes.device == "cuda":
        torch.cuda.synchronize()


def alternate(calls: dict[str, Call], sizes: Sizes) -> dict[str, float]:
    """Median seconds of each call on the device, taken in turns, each with a cold L2 cache; two rounds of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(2 if sizes.device == "cuda" else 1):
        for call in calls.values():
            call()
    synchronize(sizes)
    flush = torch.empty(FLUSH_BYTES if sizes.device == "cuda" else 0, dtype=torch.int8, device=sizes.device)
    for _ in range(sizes.repeats):
        for name, call in calls.items():
            times[name].append(_once(call, flush, sizes))
    return {name: statistics.median(kept) for name, kept in times.items()}


def _once(call: Call, flush: torch.Tensor, sizes: Sizes) -> float:
    if sizes.device == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    flush.zero_()
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def wall(call: Call, sizes: Sizes, repeats: int) -> float:
    """Median seconds of a call, host and device together."""
    times = []
    for _ in range(repeats):
        synchronize(sizes)
        start = time.perf_counter()
        call()
        synchronize(sizes)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def free(sizes: Sizes) -> None:
    """Give back what earlier models held."""
    gc.collect()
    if sizes.device == "cuda":
        torch.cuda.empty_cache()


def forget_peak(sizes: Sizes) -> None:
    """`peak_bytes` counts from here."""
    if sizes.device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(sizes: Sizes) -> int | None:
    """The most that was allocated since `forget_peak`; None on the CPU, which does not count."""
    return torch.cuda.max_memory_allocated() if sizes.device == "cuda" else None
