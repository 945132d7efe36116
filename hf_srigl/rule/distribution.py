"""From layer shapes and one sparsity to a fan-in for every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal


def fan_in_per_layer(
    shapes: Mapping[str, tuple[int, int]], sparsity: float, distribution: Literal["uniform", "erk"] = "uniform"
) -> dict[str, int]:
    """Initial fan-in k0 of every layer: ``max(1, round(density * K))``.

    `uniform` gives every layer the density ``1 - sparsity``. `erk` (Erdos-Renyi-kernel; RigL, arXiv 1911.11134,
    section 3) gives layer (N, K) a density proportional to ``(N + K) / (N * K)``, scaled so that all layers together
    have ``1 - sparsity``; layers that would exceed density 1 are kept dense and the rest rescaled.

    Args:
        shapes: layer name -> (N out, K in).
        sparsity: share of zeros over all layers together, in [0, 1).

    Example:
        >>> fan_in_per_layer({"up": (3072, 768), "down": (768, 3072)}, 0.9)
        {'up': 77, 'down': 307}
        >>> fan_in_per_layer({"wide": (400, 400), "small": (10, 10)}, 0.9, "erk")
        {'wide': 40, 'small': 10}
    """
    uniform = distribution == "uniform"
    densities = dict.fromkeys(shapes, 1.0 - sparsity) if uniform else _erk_densities(shapes, sparsity)
    # round to 9 digits first: (1 - 0.9) * 15 is 1.4999999999999996, and the user meant 1.5
    return {name: max(1, round(round(densities[name] * k, 9))) for name, (_, k) in shapes.items()}


def _erk_densities(shapes: Mapping[str, tuple[int, int]], sparsity: float) -> dict[str, float]:
    raw = {name: (n + k) / (n * k) for name, (n, k) in shapes.items()}
    size = {name: n * k for name, (n, k) in shapes.items()}
    budget = (1.0 - sparsity) * sum(size.values())
    dense: set[str] = set()
    while len(dense) < len(shapes):
        free = budget - sum(size[name] for name in dense)
        scale = free / sum(raw[name] * size[name] for name in shapes if name not in dense)
        too_dense = {name for name in shapes if name not in dense and scale * raw[name] > 1.0}
        if not too_dense:
            return {name: 1.0 if name in dense else scale * raw[name] for name in shapes}
        dense |= too_dense
    return dict.fromkeys(shapes, 1.0)
