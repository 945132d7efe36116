"""Training step of a 2-layer BERT stack, dense against condensed, timed in turns (forwards: `hf-srigl bench`).

    python benchmarks/train_step.py --threads 1
    python benchmarks/train_step.py --threads 1 --profile     # where a condensed step spends its time

Medians. "With updates" adds a hundredth of what a step that updates all layers costs more than an ordinary one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from common import batch, bert_stack, write
from torch import nn

from hf_srigl import SRigL, SRigLConfig, sparsify


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def step_of(model: nn.Module, data: dict[str, torch.Tensor], updates: bool) -> Callable[[], object]:
    """One optimizer step; the topology is updated after it when `updates` says so."""
    optimizer = torch.optim.AdamW(model.parameters())
    srigl = None
    if updates:
        config = SRigLConfig(sparsity=0.9, update_every=2)  # every other step is an update step
        srigl = SRigL(model, optimizer, total_steps=1_000_000, config=config)

    def step() -> None:
        optimizer.zero_grad()
        model(**data).loss.backward()
        optimizer.step()
        if srigl is not None:
            srigl.step()

    return step


def training(steps: int, sparsity: float) -> str:
    data = batch()
    dense, static, updated = bert_stack(), bert_stack(), bert_stack()
    config = SRigLConfig(sparsity=sparsity)
    calls = {
        "dense": step_of(dense, data, updates=False),
        "condensed": step_of(sparsify(static, config), data, updates=False),
    }
    updating = step_of(sparsify(updated, config), data, updates=True)
    times: dict[str, list[float]] = {name: [] for name in [*calls, "ordinary", "update"]}
    for round_ in range(steps + 1):
        for name, call in calls.items():
            times[name].append(timed(call))
        times["ordinary"].append(timed(updating))
        times["update"].append(timed(updating))
        if round_ == 0:  # warm-up
            for kept in times.values():
                kept.clear()
    median = {name: statistics.median(kept) for name, kept in times.items()}
    extra = median["update"] - median["ordinary"]
    total = median["condensed"] + extra / 100
    return (
        f"Training step of the 2-layer BERT stack, batch 8 x 128, AdamW, {sparsity:.0%}, "
        f"{torch.get_num_threads()} thread(s)\n\n"
        "| | ms | of dense |\n|---|---|---|\n"
        f"| dense step | {median['dense'] * 1e3:.0f} | 1 |\n"
        f"| condensed step | {median['condensed'] * 1e3:.0f} | {median['condensed'] / median['dense']:.3f} |\n"
        f"| one update of all layers, beyond the step | {extra * 1e3:.0f} | {extra / median['dense']:.3f} |\n"
        f"| condensed, one update per 100 steps | {total * 1e3:.0f} | {total / median['dense']:.3f} |\n"
    )


def profile(sparsity: float) -> str:
    step = step_of(sparsify(bert_stack(), SRigLConfig(sparsity=sparsity)), batch(), updates=False)
    step()
    with torch.profiler.profile() as prof:
        step()
    return (
        f"```\n{prof.key_averages().table(sort_by='self_cpu_time_total', row_limit=15, max_name_column_width=40)}\n```"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--name", default="train_step", help="of the file in benchmarks/results/")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    load = f"load average at the start {os.getloadavg()[0]:.1f}"
    torch.set_num_threads(options.threads)
    parts = [load, training(options.steps, options.sparsity)]
    if options.profile:
        parts.append(profile(options.sparsity))
    write(options.name, "\n\n".join(parts))


if __name__ == "__main__":
    main()
