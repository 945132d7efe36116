"""Layers on a GPU: cuBLAS against the Triton kernel and the dense path, and the limits that follow for the choice."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from gpu_timing import Sizes, alternate
from torch import Tensor
from torch.nn import functional as F

from hf_srigl import CondensedLinear
from hf_srigl.ops import choose, kernel_for
from hf_srigl.ops.cuda import choose_cuda
from hf_srigl.rule import topology


def pair(n_out: int, n_in: int, sparsity: float, sizes: Sizes) -> tuple[Tensor, CondensedLinear]:
    """A dense weight that cuBLAS multiplies by, and the condensed layer that keeps a random share of it."""
    generator = torch.Generator(sizes.device).manual_seed(0)
    weight = torch.randn(n_out, n_in, device=sizes.device, generator=generator).to(sizes.dtype)
    scores = torch.rand(n_out, n_in, device=sizes.device, generator=generator)
    fan_in = max(1, round((1 - sparsity) * n_in))
    mask = topology.magnitude_mask(scores, fan_in)
    return weight, CondensedLinear.from_dense(weight / fan_in**0.5, mask)


def forced(kernel: str, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The call with HF_SRIGL_KERNEL set to `kernel`."""

    def forcing() -> Tensor:
        before = os.environ.get(choose.VARIABLE)
        os.environ[choose.VARIABLE] = kernel
        try:
            return call()
        finally:
            os.environ.pop(choose.VARIABLE) if before is None else os.environ.update({choose.VARIABLE: before})

    return forcing


def dense_path(layer: CondensedLinear, x: Tensor) -> Tensor:
    """What the operator does above the limit, whatever the number of rows."""
    dense = choose_cuda.kernels().scatter(layer.weight, layer.indices, layer.active, layer.in_features)
    return F.linear(x, dense)


def layers(sizes: Sizes) -> str:
    """The table, its summary, and the measured line for `hf_srigl/ops/cuda/choose_cuda.py`."""
    lines = [
        "Speed-up over cuBLAS bf16 (above 1: faster), CUDA events, medians in turns, cold L2. `auto` is what the layer does",
        "by itself, `kernel` the Triton kernel, `scatter` the dense path.",
        "",
        "| sparsity, rows, out x in | cuBLAS us | auto | runs | kernel | scatter |",
        "|---|---|---|---|---|---|",
    ]
    worst = (float("inf"), "")
    beats: dict[float, dict[int, list[bool]]] = {}
    with torch.inference_mode():
        for sparsity in sizes.sparsities:
            for n_out, n_in in sizes.shapes:
                weight, layer = pair(n_out, n_in, sparsity, sizes)
                twin = layer.to_dense()
                for rows in sizes.rows:
                    x = torch.randn(rows, n_in, device=sizes.device).to(sizes.dtype)
                    cell = f"{sparsity:.0%}, {rows}, {n_out}x{n_in}"
                    calls = {
                        "cuBLAS": lambda x=x, weight=weight: F.linear(x, weight),
                        "auto": lambda x=x, layer=layer: layer(x),
                        "scatter": lambda x=x, layer=layer: dense_path(layer, x),
                    }
                    if rows <= choose_cuda.MAX_ROWS:
                        calls["kernel"] = forced("triton", calls["auto"])
                    problem = disagreement(calls, F.linear(x.float(), twin.float()))
                    if problem:
                        lines.append(f"| {cell} | **WRONG VALUES, FAILED**: {problem} | | | | |")
                        continue
                    times = alternate(calls, sizes)
                    speed = {name: times["cuBLAS"] / seconds for name, seconds in times.items()}
                    kernel = f"{speed['kernel']:.2f}" if "kernel" in speed else ""
                    lines.append(
                        f"| {cell} | {times['cuBLAS'] * 1e6:.1f} | {speed['auto']:.2f} | {kernel_for(layer, rows).name} "
                        f"| {kernel} | {speed['scatter']:.2f} |"
                    )
                    worst = min(worst, (speed["auto"], cell))
                    if "kernel" in speed:
                        won = times["kernel"] <= times["scatter"]
                        beats.setdefault(1 - sparsity, {}).setdefault(rows, []).append(won)
    lines += ["", f"Worst of auto: {worst[0]:.2f} ({worst[1]}).", "", limits(beats)]
    return "\n".join(lines)


def disagreement(calls: dict[str, Callable[[], Tensor]], expected: Tensor) -> str:
    """Which of the condensed calls computes something else, "" if none; cuBLAS has another weight and is left out."""
    scale = float(expected.abs().max())
    for name, call in calls.items():
        error = float((call().float() - expected).abs().max())
        if name != "cuBLAS" and not error <= 2e-2 * scale:
            return f"{name} is off by {error:.3g}, the largest value is {scale:.3g}"
    return ""


def limits(beats: dict[float, dict[int, list[bool]]]) -> str:
    """For each density the rows up to which the kernel beats the dense path in most shapes."""
    found = []
    for density in sorted(beats):
        limit = 0
        for rows, won in sorted(beats[density].items()):
            if sum(won) * 2 <= len(won):
                break
            limit = rows
        found.append((round(density * 1.1, 3), limit))
    line = ", ".join(f"({density}, {rows})" for density, rows in found)
    return f"Measured, for `hf_srigl/ops/cuda/choose_cuda.py`:\n\n```python\nROW_LIMITS = ({line},)\n```"
