"""`hf-srigl bench`: what a condensed layer costs on this machine, beside everything else that could compute it.

Every cell compares calls of modules with all their overhead, taken in turns. Weights are random: speed does not depend
on them, but on shapes, rows, density and types.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date

import torch
from torch import Tensor, nn

from hf_srigl.bench.measure import Call, alternate, clock_for, geometric_mean, processor, table, versions
from hf_srigl.layers.linear import CondensedLinear
from hf_srigl.ops import kernel_for
from hf_srigl.ops.cpu import library
from hf_srigl.rule import topology

SHAPES = ((768, 3072), (3072, 768), (3072, 3072))  # out x in
DENSE, DENSE16, CONDENSED, CONDENSED16 = "fp32", "bf16", "condensed", "condensed bf16"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Cell:
    """One measured case; `times` are median seconds by name of the contestant, `kernels` what the condensed ones ran on.

    `what` is "inference" or "forward + backward" for a layer, otherwise a model's name; then the sizes are 0.
    """

    what: str
    sparsity: float
    threads: int
    rows: int
    out_features: int
    in_features: int
    times: dict[str, float]
    kernels: dict[str, str]

    def speed(self, name: str, over: str = DENSE) -> float:
        """How many times faster `name` is than `over`.

        Example:
            >>> cell = Cell("inference", 0.9, 1, 8, 768, 3072, {"fp32": 6.0, "condensed": 2.0}, {})
            >>> cell.speed("condensed")
            3.0
        """
        return self.times[over] / self.times[name]


def layer_pair(n_out: int, n_in: int, sparsity: float) -> tuple[nn.Linear, CondensedLinear]:
    """A dense layer (N, K) and the condensed one that keeps a random share of its weights.

    Example:
        >>> dense, condensed = layer_pair(4, 10, 0.8)
        >>> condensed.fan_in, torch.equal(condensed.to_dense(), dense.weight * condensed.mask())
        (2, True)
    """
    dense = nn.Linear(n_in, n_out)
    fan_in = max(1, round((1 - sparsity) * n_in))
    mask = topology.random_mask((n_out, n_in), fan_in, torch.Generator().manual_seed(0))
    return dense, CondensedLinear.from_dense(dense.weight.detach(), mask, dense.bias.detach())


def half(condensed: CondensedLinear) -> CondensedLinear:
    """The same layer in bfloat16."""
    bias = None if condensed.bias is None else condensed.bias.detach().bfloat16()
    other = CondensedLinear.from_dense(condensed.to_dense().bfloat16(), condensed.mask(), bias)
    return other.train(condensed.training)


def int8(dense: nn.Module) -> nn.Module | None:
    """The module with dynamically quantized linear layers, where this torch and machine still can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch: quantize_dynamic moves to another package
            return torch.ao.quantization.quantize_dynamic(nn.Sequential(dense), {nn.Linear}, dtype=torch.qint8)
    except (AttributeError, RuntimeError, NotImplementedError):
        return None


def contestants(dense: nn.Linear, condensed: CondensedLinear, x: Tensor, gather: bool = False) -> dict[str, Call]:
    """Everything that can compute the layer on x (rows, K), by name; all built outside of inference mode.

    Args:
        gather: also the paper's gather, ``(x[:, indices] * values).sum(-1)``, through `torch.compile` (slow to start).
    """
    x16, dense16, condensed16 = (
        x.bfloat16(),
        nn.Linear(dense.in_features, dense.out_features).bfloat16(),
        half(condensed),
    )
    bias = dense.bias.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: CSR support is in beta
        csr = condensed.to_dense().to_sparse_csr()
    calls: dict[str, Call] = {
        DENSE: lambda: dense(x),
        DENSE16: lambda: dense16(x16),
        "CSR": lambda: (csr @ x.t()).t() + bias,
        CONDENSED: lambda: condensed(x),
        CONDENSED16: lambda: condensed16(x16),
    }
    quantized = int8(dense)
    if quantized is not None:
        calls["int8"] = lambda: quantized(x)
    try:
        import sparselab  # the maintained rival on CPUs; only measured where somebody has installed it
    except ImportError:
        pass
    else:
        density = float(condensed.mask().float().mean())
        other = sparselab.SparseLinear(dense.in_features, dense.out_features, sparsity=1 - density)
        calls["sparselab"] = lambda: other(x)
    if gather:
        compiled = torch.compile(lambda x, i, w, b: (x[:, i] * w).sum(-1) + b)
        shape = (dense.out_features, condensed.fan_in)
        columns, values = condensed.indices.long().view(shape), condensed.weight.detach().view(shape)
        calls["gather"] = lambda: compiled(x, columns, values, bias)
    return calls


def bench_layer(
    n_out: int, n_in: int, rows: int, sparsity: float, *, seconds: float, threads: int = 1, gather: bool = False
) -> Cell:
    """Inference of one layer (N, K) on x (rows, K)."""
    torch.set_num_threads(threads)
    dense, condensed = layer_pair(n_out, n_in, sparsity)
    for layer in (dense, condensed):
        layer.eval()
    calls = contestants(dense, condensed, torch.randn(rows, n_in), gather)
    with torch.inference_mode():
        times = alternate(calls, seconds, clock=clock_for(threads))
        kernels = {
            CONDENSED: kernel_for(condensed, rows).name,
            CONDENSED16: kernel_for(condensed, rows, torch.bfloat16).name,
        }
    return Cell("inference", sparsity, threads, rows, n_out, n_in, times, kernels)


def bench_gradients(n_out: int, n_in: int, rows: int, sparsity: float, *, seconds: float, threads: int = 1) -> Cell:
    """Forward, gradient of x and gradient of the weights of one layer, through autograd on both sides."""
    torch.set_num_threads(threads)
    dense, condensed = layer_pair(n_out, n_in, sparsity)
    x, upstream = torch.randn(rows, n_in, requires_grad=True), torch.randn(rows, n_out)
    layers: dict[str, nn.Linear | CondensedLinear] = {DENSE: dense, CONDENSED: condensed}
    calls = {name: functools.partial(_gradients, layer, x, upstream) for name, layer in layers.items()}
    times = alternate(calls, seconds, clock=clock_for(threads))
    kernels = {CONDENSED: kernel_for(condensed, rows).name}
    return Cell("forward + backward", sparsity, threads, rows, n_out, n_in, times, kernels)


def _gradients(layer: nn.Linear | CondensedLinear, x: Tensor, upstream: Tensor) -> object:
    return torch.autograd.grad(layer(x), [x, layer.weight], upstream)


def bench_layers(
    shapes: Sequence[tuple[int, int]],
    rows: Sequence[int],
    sparsities: Sequence[float],
    threads: Sequence[int],
    *,
    seconds: float,
    gradients: Sequence[int] = (),
    gather: bool = False,
    progress: Progress = lambda _: None,
) -> list[Cell]:
    """All combinations; `gradients` are the numbers of rows for forward + backward. Leaves torch's threads as they were."""
    before, cells = torch.get_num_threads(), []
    try:
        for sparsity in sparsities:
            for count in threads:
                for rows_ in rows:
                    for n_out, n_in in shapes:
                        progress(f"{n_out}x{n_in}, {rows_} rows, {sparsity:.0%}, {count} thread(s)")
                        cells.append(
                            bench_layer(n_out, n_in, rows_, sparsity, seconds=seconds, threads=count, gather=gather)
                        )
                for rows_ in gradients:
                    for n_out, n_in in shapes:
                        progress(f"{n_out}x{n_in}, {rows_} rows, {sparsity:.0%}, {count} thread(s), with gradients")
                        cells.append(bench_gradients(n_out, n_in, rows_, sparsity, seconds=seconds, threads=count))
    finally:
        torch.set_num_threads(before)
    return cells


def layer_table(cells: Sequence[Cell]) -> str:
    """One kind of layer cells as Markdown: microseconds of dense fp32, and how many times faster the others are."""
    names = [name for name in dict.fromkeys(name for cell in cells for name in cell.times) if name != DENSE]
    header = ["sparsity", "threads", "rows", "out x in", "fp32 us", *names, "kernel"]
    body = [
        [
            f"{cell.sparsity:.0%}",
            str(cell.threads),
            str(cell.rows),
            f"{cell.out_features}x{cell.in_features}",
            f"{cell.times[DENSE] * 1e6:.0f}",
            *(f"{cell.speed(name):.2f}" if name in cell.times else "-" for name in names),
            " / ".join(dict.fromkeys(cell.kernels.values())),
        ]
        for cell in cells
    ]
    return table(header, body)


def model_table(cells: Sequence[Cell]) -> str:
    """Model cells as Markdown: milliseconds of dense fp32, and how many times faster the others are."""
    names = [name for name in dict.fromkeys(name for cell in cells for name in cell.times) if name != DENSE]
    header = ["forward of a model", "sparsity", "threads", "fp32 ms", *names]
    body = [
        [
            cell.what,
            f"{cell.sparsity:.0%}",
            str(cell.threads),
            f"{cell.times[DENSE] * 1e3:.0f}",
            *(f"{cell.speed(name):.2f}" if name in cell.times else "-" for name in names),
        ]
        for cell in cells
    ]
    return table(header, body)


def summary(cells: Sequence[Cell]) -> str:
    """Geometric mean and worst cell of every contestant, by sparsity and number of threads; empty without cells."""
    groups: dict[tuple[float, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.sparsity, cell.threads), []).append(cell)
    body = []
    for (sparsity, threads), group in groups.items():
        names = [name for name in group[0].times if name != DENSE]
        pairs = [(name, DENSE) for name in names]
        pairs += [(CONDENSED, other) for other in ("CSR", "sparselab", "gather") if other in names]
        pairs += [(CONDENSED16, DENSE16)] if DENSE16 in names else []
        for name, over in pairs:
            speeds = [cell.speed(name, over) for cell in group]
            body.append(
                [
                    f"{sparsity:.0%}",
                    str(threads),
                    f"{name} over {over}",
                    f"{geometric_mean(speeds):.2f}",
                    f"{min(speeds):.2f}",
                ]
            )
    return table(["sparsity", "threads", "speed-up of", "geometric mean", "worst"], body) if body else ""


def head(command: str) -> str:
    """What a table of times is worth nothing without: command, date, machine, versions, load, instruction set."""
    try:
        load = f"{os.getloadavg()[0]:.1f}"
    except (AttributeError, OSError):  # Windows has no such number
        load = "unknown"
    kernels = library.isa() if library.available() else f"none ({library.reason()})"
    return (
        f"- command: `{command}`\n- date: {date.today()}\n- machine: {processor()}\n"
        f"- {versions('torch', 'transformers')}\n- load average at the start {load}; native kernels: {kernels}"
    )


def report(title: str, layers: Sequence[Cell], models: Sequence[Cell]) -> str:
    """The whole result as Markdown, under `title` (`head`)."""
    parts = [title]
    for what in dict.fromkeys(cell.what for cell in layers):
        chosen = [cell for cell in layers if cell.what == what]
        parts += [f"Single layers, {what}: times faster than `nn.Linear` in fp32", layer_table(chosen), summary(chosen)]
    if models:
        parts += ["Whole models with random weights: times faster than dense fp32", model_table(models)]
    return "\n\n".join(parts)


def as_data(cells: Sequence[Cell]) -> list[dict[str, object]]:
    """The cells, JSON-ready."""
    return [asdict(cell) for cell in cells]
