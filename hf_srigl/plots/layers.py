"""Every layer of a sparse model: sparsity, fan-in, active neurons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any

from hf_srigl.model.report import LayerRow, SparsityReport
from hf_srigl.plots import style

MOST_BARS = 16  # layers with a bar and a name of their own; more are drawn by their place among those of their kind


@dataclass(frozen=True)
class _Panel:
    title: str
    short_title: str
    value: Callable[[LayerRow], float]
    text: Callable[[LayerRow], str]
    is_share: bool = True


_PANELS = (
    _Panel("Sparsity: zeros, % of the weights", "Sparsity", lambda r: 100 * r.sparsity, lambda r: f"{r.sparsity:.1%}"),
    _Panel(
        "Fan-in: inputs of each active neuron",
        "Fan-in of active neurons",
        lambda r: r.fan_in,
        lambda r: f"{r.fan_in} of {r.in_features}",
        is_share=False,
    ),
    _Panel(
        "Active neurons, % of the layer",
        "Active neurons",
        lambda r: 100 * r.active_neurons / r.out_features,
        lambda r: f"{r.active_neurons} of {r.out_features}",
    ),
)


def plot_layers(report: SparsityReport, path: str | PathLike[str], *, title: str | None = None) -> None:
    """Draw sparsity, fan-in and active neurons of every condensed layer of a model, and write the picture.

    Up to 16 layers get bars with their names and numbers. More become one line for each kind of layer (the same name but for
    its numbers), from the first layer of that kind to the last; kinds that agree everywhere share a line.

    Args:
        report: `sparsity_report` of a condensed model.
        path: the file to write; its ending tells the format (png, svg, pdf).
        title: default: how many weights are zero and how many neurons active.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the model has no condensed layer.

    Example:
        >>> from torch import nn; from hf_srigl import SRigLConfig, sparsify, sparsity_report
        >>> model = sparsify(nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 16)), SRigLConfig())
        >>> plot_layers(sparsity_report(model), tmp_path / "layers.png")
        >>> (tmp_path / "layers.png").stat().st_size > 10_000
        True
    """
    if not report.rows:
        raise ValueError("there is no layer to draw: the model is not condensed")
    if len(report.rows) <= MOST_BARS:
        figure = style.new_figure(11, 1.35 + 0.36 * len(report.rows))
        _draw_bars(figure, report.rows)
    else:
        figure = style.new_figure(10, 8)
        _draw_lines(figure, report.rows)
    neurons = sum(row.out_features for row in report.rows)
    active = sum(row.active_neurons for row in report.rows)
    found = f"{report.target_sparsity:.1%} of the weights in {len(report.rows)} sparse layers are zero"
    circumstances = (
        f"{active:,} of {neurons:,} neurons are active; with embeddings, norms and heads, which stay dense, "
    )
    circumstances += f"the whole model is {report.model_sparsity:.1%} sparse"
    style.headline(figure, title or found, circumstances, left=0.02 if len(report.rows) <= MOST_BARS else 0.07)
    style.save(figure, path)


def _draw_bars(figure: Any, rows: tuple[LayerRow, ...]) -> None:
    height = figure.get_size_inches()[1]
    names = [row.name if len(row.name) <= 44 else f"…{row.name[-43:]}" for row in rows]
    left = 0.03 + 0.0065 * max(map(len, names))
    panels = figure.subplots(1, 3, sharey=True)
    figure.subplots_adjust(left=left, right=0.98, top=1 - 1.15 / height, bottom=0.12 / height, wspace=0.12)
    for axes, colour, panel in zip(panels, style.COLOURS, _PANELS, strict=False):
        values = [panel.value(row) for row in rows]
        axes.barh(range(len(rows)), values, color=colour, height=0.62, alpha=0.85)
        axes.set_xlim(0, 1.45 * max(100.0 if panel.is_share else 1.0, *values))  # room for the numbers
        for place, (row, value) in enumerate(zip(rows, values, strict=True)):
            axes.annotate(panel.text(row), (value, place), (4, 0), textcoords="offset points", fontsize=9, va="center")
        axes.set_title(panel.short_title, loc="left", fontsize=10)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.set_xticks([])
        axes.tick_params(length=0)
    panels[0].set_yticks(range(len(rows)), names, fontsize=9)
    panels[0].set_ylim(len(rows) - 0.4, -0.6)  # the first layer on top


def _draw_lines(figure: Any, rows: tuple[LayerRow, ...]) -> None:
    labels = style.kind_labels([row.name for row in rows])
    kinds: dict[str, list[LayerRow]] = {}
    for row in rows:
        kinds.setdefault(labels[row.name], []).append(row)
    drawn = {kind: str([[round(p.value(row)) for row in rows] for p in _PANELS]) for kind, rows in kinds.items()}
    colours = style.looks_of([drawn[kind] for kind, members in kinds.items() if len(members) > 1])
    looks = {
        kind: colours.get(drawn[kind], style.Look()) for kind in kinds
    }  # what looks the same everywhere shares one
    deepest = max(map(len, kinds.values()))
    panels = figure.subplots(3, 1, sharex=True)
    figure.subplots_adjust(left=0.07, right=style.RIGHT, top=0.86, bottom=0.07, hspace=0.25)
    for axes, panel in zip(panels, _PANELS, strict=True):
        style.tidy(axes, panel.title)
        series = {kind: [panel.value(row) for row in members] for kind, members in kinds.items()}
        top = 105.0 if panel.is_share else 1.06 * max(max(values) for values in series.values())
        axes.set_ylim(0, top)
        axes.set_xlim(0.5, deepest + 0.5)
        lines: dict[tuple[float, ...], list[str]] = {}
        for kind, values in series.items():  # what looks the same is drawn once
            lines.setdefault(tuple(round(100 * value / top) for value in values), []).append(kind)
        ends: dict[str, tuple[float, str]] = {}
        for same in lines.values():
            values, look = series[same[0]], looks[same[0]]
            places = range(1, len(values) + 1)
            axes.plot(
                places, values, color=look.colour, linestyle=look.style, linewidth=1.4, marker="o",
                markersize=3.5 if deepest <= 48 or len(values) == 1 else 0, alpha=0.85,
            )  # fmt: skip
            if len(values) < deepest:  # the way to its label
                way = ([len(values), deepest + 0.5], [values[-1]] * 2)
                axes.plot(*way, color=look.colour, linestyle=":", linewidth=0.8, alpha=0.7)
            ends |= dict.fromkeys(same, (values[-1], look.colour))
        style.label_ends(axes, deepest + 0.5, ends)
    panels[-1].set_xlabel("layers of a kind, from the first to the last")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
