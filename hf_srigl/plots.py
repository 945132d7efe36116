"""Draws what topology updates did. Takes reports, never a model; matplotlib is needed only here, and only when drawing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from os import PathLike
from statistics import fmean
from typing import Any

from hf_srigl.report import SparsityReport
from hf_srigl.updates import UpdateReport

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # told apart by colour-blind readers too
_GREY = "#8a8a8a"

Series = list[tuple[int, int, float]]  # (step, fan-in, active neurons as a share of the layer's)


def plot_topology(
    reports: Sequence[UpdateReport],
    path: str | PathLike[str],
    *,
    start: SparsityReport | None = None,
    total_steps: int | None = None,
    title: str | None = None,
) -> None:
    """Draw fan-in and active neurons of every layer over the steps of a training, and write the picture.

    Layers of one kind (the same name but for its numbers) share a colour and a label; kinds that never lost a neuron are
    grey.

    Args:
        reports: of the training, in order (`SRigLCallback.reports`, or what `SRigL.step` returned).
        path: the file to write; its ending tells the format (png, svg, pdf).
        start: `sparsity_report` of the model before training, to begin at step 0.
        total_steps: of the training, to draw the steps after the last update too.
        title: default: what was found.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is no report.

    Example:
        >>> from hf_srigl.updates import LayerUpdate
        >>> row = LayerUpdate(name="mlp.0.fc1", dropped=9, grown=9, fan_in=8, active=32, neurons=64, itop=0.2)
        >>> report = UpdateReport(100, 0.3, (row,), sparsity=0.9, active_neurons=0.5, itop=0.2)
        >>> plot_topology([report], tmp_path / "topology.png", total_steps=200)
        >>> (tmp_path / "topology.png").stat().st_size > 10_000
        True
    """
    if not reports:
        raise ValueError("there is no report to draw: the training made no topology update (see update_every)")
    figure = new_figure()
    layers = topology_series(reports, start)
    last = max(reports[-1].step, total_steps or 0)
    fan_ins, shares = figure.subplots(2, 1, sharex=True)
    _draw(fan_ins, {name: [(t, float(fan_in)) for t, fan_in, _ in s] for name, s in layers.items()}, layers, last)
    _draw(shares, {name: [(t, 100 * share) for t, _, share in s] for name, s in layers.items()}, layers, last)
    fan_ins.set_title("Fan-in: inputs of each active neuron", loc="left", fontsize=10)
    shares.set_title("Active neurons, % of the layer", loc="left", fontsize=10)
    shares.set_xlabel("optimizer step")
    figure.text(0.07, 0.955, title or finding(reports), fontsize=13, fontweight="bold", va="center")
    subtitle = f"{reports[-1].sparsity:.1%} of the weights are zero at every step; "
    subtitle += (
        f"{_count(len(reports), 'topology update')}, the last at step {reports[-1].step}; one line for each layer"
    )
    figure.text(0.07, 0.91, subtitle, fontsize=9.5, color="#555555", va="center")
    figure.subplots_adjust(left=0.07, right=0.8, top=0.84, bottom=0.09, hspace=0.22)
    figure.savefig(path, dpi=150)


def finding(reports: Sequence[UpdateReport]) -> str:
    """What the reports say, in one line.

    Example:
        >>> finding([UpdateReport(100, 0.3, (), sparsity=0.9, active_neurons=1.0, itop=0.2)])
        'No neuron was ablated: every fan-in stays as it began'
    """
    ablated = 1 - reports[-1].active_neurons
    if ablated <= 0:
        return "No neuron was ablated: every fan-in stays as it began"
    return f"{ablated:.0%} of all neurons were ablated; those that stay took over their weights"


def topology_series(reports: Sequence[UpdateReport], start: SparsityReport | None = None) -> dict[str, Series]:
    """Layer name -> its (step, fan-in, share of active neurons) after each of its updates; from step 0 if `start` is given.

    Example:
        >>> from hf_srigl.updates import LayerUpdate
        >>> row = LayerUpdate(name="fc1", dropped=9, grown=9, fan_in=8, active=32, neurons=64, itop=0.2)
        >>> topology_series([UpdateReport(100, 0.3, (row,), sparsity=0.9, active_neurons=0.5, itop=0.2)])
        {'fc1': [(100, 8, 0.5)]}
    """
    layers: dict[str, Series] = {}
    for row in start.rows if start is not None else ():
        layers[row.name] = [(0, row.fan_in, row.active_neurons / row.out_features)]
    for report in reports:
        for update in report.layers:
            point = (report.step, update.fan_in, update.active / update.neurons)
            layers.setdefault(update.name, []).append(point)
    return layers


def kind_labels(names: Sequence[str]) -> dict[str, str]:
    """Layer name -> what to call its kind: the shortest ending, without numbers, that tells the kinds apart.

    Example:
        >>> kind_labels(["layers.0.fc1", "layers.1.fc1", "layers.0.output.dense", "layers.0.attention.dense"])
        {'layers.0.fc1': 'fc1', 'layers.1.fc1': 'fc1', 'layers.0.output.dense': 'output.dense', \
'layers.0.attention.dense': 'attention.dense'}
    """
    kinds = {name: [part for part in name.split(".") if not re.fullmatch(r"\d+", part)] or [name] for name in names}
    labels = {}
    for name, parts in kinds.items():
        for length in range(1, len(parts) + 1):
            labels[name] = ".".join(parts[-length:])
            if all(other == parts for other in kinds.values() if other[-length:] == parts[-length:]):
                break
    return labels


def new_figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install hf_srigl[plots]") from error
    return Figure(figsize=(9, 6.5))


def _draw(axes: Any, lines: dict[str, list[tuple[int, float]]], layers: dict[str, Series], last: int) -> None:
    """One step line for each layer, and one label for each kind where its lines end."""
    labels = kind_labels(list(lines))
    steady = {labels[name] for name in lines} - {labels[n] for n, s in layers.items() if any(p[2] < 1 for p in s)}
    changing = [label for label in dict.fromkeys(labels.values()) if label not in steady]
    colours = {label: _COLOURS[i % len(_COLOURS)] for i, label in enumerate(changing)}
    ends: dict[str, list[float]] = {}
    for name, points in lines.items():
        steps, values = [p[0] for p in points], [p[1] for p in points]
        colour = colours.get(labels[name], _GREY)
        axes.plot(
            [*steps, last], [*values, values[-1]], drawstyle="steps-post", color=colour, linewidth=1.2, alpha=0.75
        )
        ends.setdefault(labels[name], []).append(values[-1])
    axes.set_xlim(0, last)
    axes.set_ylim(0, 1.06 * max(value for points in lines.values() for _, value in points))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)

    together: dict[tuple[float, str], list[str]] = {}  # kinds that end alike and look alike share one label
    for label, values in ends.items():
        key = (round(sum(values) / len(values), 6), colours.get(label, _GREY))
        together.setdefault(key, []).append(label)
    top = axes.get_ylim()[1]
    heights = _spread([value for value, _ in together], gap=0.075 * top, top=top)
    for ((_, colour), kinds), height in zip(together.items(), heights, strict=True):
        axes.annotate(
            ", ".join(kinds), (last, height), (6, 0), textcoords="offset points", color=colour, fontsize=9.5,
            va="center", annotation_clip=False,
        )  # fmt: skip


def _spread(values: list[float], gap: float, top: float) -> list[float]:
    """The values, moved as little as possible so that neighbours are `gap` apart and none is above `top`.

    Less ``rank * gap`` they need only be in order: neighbours that are not share their mean.
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    pools: list[list[float]] = []
    for rank, i in enumerate(order):
        pools.append([values[i] - rank * gap])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    in_order = [fmean(pool) for pool in pools for _ in pool]
    room = top - gap * (len(values) - 1)  # less rank * gap, what the highest may be
    placed = dict(zip(order, (min(v, room) + rank * gap for rank, v in enumerate(in_order)), strict=True))
    return [placed[i] for i in range(len(values))]


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")
