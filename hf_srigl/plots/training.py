"""What topology updates did over a training, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

from hf_srigl.model.report import SparsityReport
from hf_srigl.plots import style
from hf_srigl.rule.updates import UpdateReport

Series = list[tuple[int, int, float]]  # (step, fan-in, active neurons as a share of the layer's)


def plot_topology(
    reports: Sequence[UpdateReport],
    path: str | PathLike[str],
    *,
    start: SparsityReport | None = None,
    start_step: int = 0,
    total_steps: int | None = None,
    title: str | None = None,
) -> None:
    """Draw a training: fan-in and active neurons of every layer, and what each update replaced; write the picture.

    Layers of one kind (the same name but for its numbers) share a colour and a label; kinds that never lost a neuron are
    grey.

    Args:
        reports: of the training, in order (`SRigLTrainerMixin.topology_reports`, or what `SRigL.step` returned).
        path: the file to write; its ending tells the format (png, svg, pdf).
        start: `sparsity_report` of the model before `reports` begin, at step `start_step`.
        total_steps: of the training, to draw the steps after the last update too.
        title: default: what was found.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is no report.

    Example:
        >>> from hf_srigl.rule.updates import LayerUpdate
        >>> row = LayerUpdate(name="mlp.0.fc1", dropped=9, grown=9, fan_in=8, active=32, neurons=64, itop=0.2)
        >>> report = UpdateReport(100, 0.3, (row,), sparsity=0.9, active_neurons=0.5, itop=0.2)
        >>> plot_topology([report], tmp_path / "topology.png", total_steps=200)
        >>> (tmp_path / "topology.png").stat().st_size > 10_000
        True
    """
    if not reports:
        raise ValueError("there is no report to draw: the training made no topology update (see update_every)")
    figure = style.new_figure(10, 9)
    layers = topology_series(reports, start, start_step)
    last = max(reports[-1].step, total_steps or 0)
    fan_ins, shares, changes = figure.subplots(3, 1, sharex=True)
    figure.subplots_adjust(left=0.07, right=style.RIGHT, top=0.87, bottom=0.065, hspace=0.25)
    style.tidy(fan_ins, "Fan-in: inputs of each active neuron")
    style.tidy(shares, "Active neurons, % of the layer")
    style.tidy(changes, "Connections: new after each update, and ever tried, %")
    first = start_step if start is not None else 0
    _draw_layers(
        fan_ins, {name: [(t, float(fan_in)) for t, fan_in, _ in s] for name, s in layers.items()}, layers, last
    )
    _draw_layers(shares, {name: [(t, 100 * share) for t, _, share in s] for name, s in layers.items()}, layers, last)
    _draw_changes(changes, reports, last)
    changes.set_xlim(first, last)  # shared by all panels
    changes.set_xlabel("optimizer step")
    style.headline(figure, title or finding(reports), _circumstances(reports))
    style.save(figure, path)


def finding(reports: Sequence[UpdateReport]) -> str:
    """What the reports say, in one line.

    Example:
        >>> finding([UpdateReport(100, 0.3, (), sparsity=0.9, active_neurons=1.0, itop=0.2)])
        'No neuron was ablated: every neuron keeps inputs of its own'
    """
    ablated = 1 - reports[-1].active_neurons
    if ablated <= 0:
        return "No neuron was ablated: every neuron keeps inputs of its own"
    return f"{ablated:.{0 if ablated >= 0.01 else 1}%} of all neurons were ablated; those that stay took over their weights"


def _circumstances(reports: Sequence[UpdateReport]) -> str:
    first, last = reports[0].sparsity, reports[-1].sparsity
    zeros = f"{last:.1%} of the weights are zero"
    if abs(last - first) > 0.01:  # ablation leaves a few slots unused; more than that was meant
        zeros = f"zeros went from {first:.1%} of the weights to {last:.1%}"
    updates = f"{len(reports)} topology update" + ("" if len(reports) == 1 else "s")
    return f"{zeros}; {updates}, the last at step {reports[-1].step}; one line for each layer"


def topology_series(
    reports: Sequence[UpdateReport], start: SparsityReport | None = None, start_step: int = 0
) -> dict[str, Series]:
    """Layer name -> its (step, fan-in, share of active neurons) after each of its updates; before the first, `start`.

    Example:
        >>> from hf_srigl.rule.updates import LayerUpdate
        >>> row = LayerUpdate(name="fc1", dropped=9, grown=9, fan_in=8, active=32, neurons=64, itop=0.2)
        >>> topology_series([UpdateReport(100, 0.3, (row,), sparsity=0.9, active_neurons=0.5, itop=0.2)])
        {'fc1': [(100, 8, 0.5)]}
    """
    layers: dict[str, Series] = {}
    for row in start.rows if start is not None else ():
        layers[row.name] = [(start_step, row.fan_in, row.active_neurons / row.out_features)]
    for report in reports:
        for update in report.layers:
            point = (report.step, update.fan_in, update.active / update.neurons)
            layers.setdefault(update.name, []).append(point)
    return layers


def replaced(report: UpdateReport) -> float:
    """The share of the updated layers' connections that are new after an update.

    Example:
        >>> from hf_srigl.rule.updates import LayerUpdate
        >>> row = LayerUpdate(name="fc1", dropped=64, grown=64, fan_in=8, active=32, neurons=64, itop=0.2)
        >>> replaced(UpdateReport(100, 0.3, (row,), sparsity=0.9, active_neurons=0.5, itop=0.2))
        0.25
    """
    connections = sum(row.fan_in * row.active for row in report.layers)
    return report.grown / connections if connections else 0.0


def _draw_layers(axes: Any, lines: dict[str, list[tuple[int, float]]], layers: dict[str, Series], last: int) -> None:
    """One step line for each layer, and one label for each kind where its lines end."""
    labels = style.kind_labels(list(lines))
    losing = {labels[name] for name, series in layers.items() if any(share < 1 for _, _, share in series)}
    looks = style.looks_of([label for label in labels.values() if label in losing])
    ends: dict[str, list[float]] = {}
    thin = 1.2 if len(lines) <= 40 else 0.8
    for name, points in sorted(lines.items(), key=lambda line: labels[line[0]] in losing):  # grey lies below
        steps, values = [p[0] for p in points], [p[1] for p in points]
        look = looks.get(labels[name], style.Look())
        axes.plot(
            [*steps, last], [*values, values[-1]], drawstyle="steps-post", color=look.colour, linestyle=look.style,
            linewidth=thin, alpha=0.75,
        )  # fmt: skip
        ends.setdefault(labels[name], []).append(values[-1])
    axes.set_ylim(0, 1.06 * max(value for points in lines.values() for _, value in points))
    means = {label: sum(values) / len(values) for label, values in ends.items()}
    style.label_ends(axes, last, {n: (y, looks.get(n, style.Look()).colour) for n, y in means.items()})


def _draw_changes(axes: Any, reports: Sequence[UpdateReport], last: int) -> None:
    steps = [report.step for report in reports]
    new, tried = [100 * replaced(report) for report in reports], [100 * report.itop for report in reports]
    axes.plot(steps, new, color=style.COLOURS[1], linewidth=1.2, marker="o", markersize=3 if len(steps) <= 100 else 0)
    axes.plot([*steps, last], [*tried, tried[-1]], drawstyle="steps-post", color=style.COLOURS[0], linewidth=1.4)
    axes.set_ylim(0, 1.1 * max(*new, *tried, 1.0))
    ends = {
        "new, of all connections": (new[-1], style.COLOURS[1]),
        "ever tried, of all positions": (tried[-1], style.COLOURS[0]),
    }
    style.label_ends(axes, last, ends)
