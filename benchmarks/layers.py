"""Layers: dense fp32 and bf16, dynamic int8, torch CSR, sparselab (if installed) and condensed, timed in turns.

    python benchmarks/layers.py                         # the whole table
    python benchmarks/layers.py --sparsity 0.9 --threads 1 --rows 1 64 --seconds 0.2

A cell is the speed-up over the fp32 `nn.Linear` (above 1: faster), of calls with all their overhead.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from common import write
from torch import Tensor, nn

from hf_srigl import CondensedLinear, topology
from hf_srigl.ops import kernel_for, library

SHAPES = [(768, 3072), (3072, 768), (3072, 3072)]  # out x in
Call = Callable[[], object]


def alternate(calls: dict[str, Call], seconds: float) -> dict[str, float]:
    """Median time of each call, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end or len(times["fp32"]) < 5:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(kept) for name, kept in times.items()}


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def layers(n_out: int, n_in: int, sparsity: float) -> tuple[nn.Linear, CondensedLinear]:
    """A dense layer and the condensed one that keeps a random share of its weights."""
    dense = nn.Linear(n_in, n_out)
    mask = topology.random_mask((n_out, n_in), max(1, round((1 - sparsity) * n_in)), torch.Generator().manual_seed(0))
    return dense, CondensedLinear.from_dense(dense.weight.detach(), mask, dense.bias.detach())


def int8(dense: nn.Linear) -> nn.Module | None:
    """The dynamically quantized layer, where this torch still has it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(dense), {nn.Linear}, dtype=torch.qint8)
    except (AttributeError, RuntimeError, NotImplementedError):
        return None
    return quantized


def rivals(dense: nn.Linear, condensed: CondensedLinear, x: Tensor) -> dict[str, Call]:
    """What else could compute the layer, by name."""
    bf16 = nn.Linear(dense.in_features, dense.out_features).to(torch.bfloat16)
    condensed16 = CondensedLinear.from_dense(condensed.to_dense().bfloat16(), condensed.mask(), bf16.bias.detach())
    x16, sparse, bias = x.bfloat16(), condensed.to_dense(), dense.bias.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: CSR support is in beta
        csr = sparse.to_sparse_csr()
    calls: dict[str, Call] = {
        "fp32": lambda: dense(x),
        "bf16": lambda: bf16(x16),
        "CSR": lambda: (csr @ x.t()).t() + bias,
        "condensed": lambda: condensed(x),
        "condensed bf16": lambda: condensed16(x16),
    }
    quantized = int8(dense)
    if quantized is not None:
        calls["int8"] = lambda: quantized(x)
    try:
        import sparselab
    except ImportError:
        return calls
    sparsity = 1 - float(condensed.mask().float().mean())
    other = sparselab.SparseLinear(dense.in_features, dense.out_features, sparsity=sparsity)
    return calls | {"sparselab": lambda: other(x)}


def inference(threads: list[int], rows: list[int], sparsity: float, seconds: float) -> list[str]:
    lines: list[str] = []
    ratios: dict[str, list[float]] = {}
    for thread_count in threads:
        torch.set_num_threads(thread_count)
        for count in rows:
            for n_out, n_in in SHAPES:
                dense, condensed = layers(n_out, n_in, sparsity)
                x = torch.randn(count, n_in)
                with torch.inference_mode():
                    times = alternate(rivals(dense, condensed, x), seconds)
                speed = {name: times["fp32"] / t for name, t in times.items()}
                for name, value in speed.items():
                    ratios.setdefault(name, []).append(value)
                ratios.setdefault("condensed bf16 / bf16", []).append(times["bf16"] / times["condensed bf16"])
                if not lines:
                    names = [name for name in speed if name != "fp32"]
                    lines += [
                        f"| {sparsity:.0%}: threads, rows, out x in | fp32 us | {' | '.join(names)} | kernel |",
                        "|---|---|" + "---|" * (len(names) + 1),
                    ]
                cells = " | ".join(f"{speed[name]:.2f}" for name in names)
                lines.append(
                    f"| {thread_count}, {count}, {n_out}x{n_in} | {times['fp32'] * 1e6:.0f} | {cells} "
                    f"| {kernel_for(condensed, count).name} |"
                )
                print(lines[-1], flush=True)
    for name, values in ratios.items():
        if name != "fp32":
            lines.append(
                f"\n{sparsity:.0%} {name}: geometric mean {geometric_mean(values):.2f}, worst {min(values):.2f}"
            )
    return lines


def gradients(layer: nn.Module, x: Tensor, upstream: Tensor) -> object:
    return torch.autograd.grad(layer(x), [x, layer.weight], upstream)


def training(threads: list[int], sparsity: float, seconds: float, rows: int = 1024) -> list[str]:
    """Forward, gradient of x and gradient of the weights, through autograd on both sides."""
    lines = [f"| {sparsity:.0%}, forward + backward, {rows} rows: threads, out x in | speed-up |", "|---|---|"]
    ratios = []
    for thread_count in threads:
        torch.set_num_threads(thread_count)
        for n_out, n_in in SHAPES:
            dense, condensed = layers(n_out, n_in, sparsity)
            x, upstream = torch.randn(rows, n_in, requires_grad=True), torch.randn(rows, n_out)
            calls = {
                name: functools.partial(gradients, layer, x, upstream)
                for name, layer in (("fp32", dense), ("condensed", condensed))
            }
            times = alternate(calls, seconds)
            ratios.append(times["fp32"] / times["condensed"])
            lines.append(f"| {thread_count}, {n_out}x{n_in} | {ratios[-1]:.2f} |")
    return [*lines, f"\n{sparsity:.0%} forward + backward: geometric mean {geometric_mean(ratios):.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.8, 0.9, 0.95])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 256, 2048])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=0.4, help="per call and cell")
    parser.add_argument("--name", default="layers", help="of the file in benchmarks/results/")
    parser.add_argument("--no-training", action="store_true")
    options = parser.parse_args()
    if not library.available():
        raise SystemExit(library.reason())
    load = f"load average at the start {os.getloadavg()[0]:.1f}; instruction set {library.isa()}"
    parts = [load]
    for sparsity in options.sparsity:
        parts.append("\n".join(inference(options.threads, options.rows, sparsity, options.seconds)))
        if not options.no_training:
            parts.append("\n".join(training(options.threads, sparsity, options.seconds)))
    write(options.name, "\n\n".join(parts))


if __name__ == "__main__":
    main()
