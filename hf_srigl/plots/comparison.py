"""A sparse model beside its dense twin: whatever was measured of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

from hf_srigl.plots import style

COLUMNS = 3


@dataclass(frozen=True)
class Measure:
    """One number of both models. `form` is how it is written, with its unit: ``"{:.1f} MB"``."""

    label: str
    dense: float
    sparse: float
    form: str = "{:g}"


def plot_comparison(
    measures: Sequence[Measure],
    path: str | PathLike[str],
    *,
    names: tuple[str, str] = ("dense", "sparse"),
    title: str,
    subtitle: str = "",
) -> None:
    """Draw a small panel of two bars for each measure, from zero, with both numbers and their ratio, and write the picture.

    Args:
        measures: what to draw, in order; none may be negative.
        path: the file to write; its ending tells the format (png, svg, pdf).
        names: of the dense and of the sparse model.
        title, subtitle: what was found, and under which circumstances.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is nothing to draw, or a measure is negative.

    Example:
        >>> size, accuracy = Measure("size on disk", 3.2, 0.6, "{:.1f} MB"), Measure("accuracy", 0.94, 0.93, "{:.1%}")
        >>> plot_comparison([accuracy, size], tmp_path / "twins.png", title="A fifth of the size")
        >>> (tmp_path / "twins.png").stat().st_size > 5_000
        True
    """
    if not measures:
        raise ValueError("there is nothing to draw: no measure was given")
    for measure in measures:
        if min(measure.dense, measure.sparse) < 0:
            raise ValueError(f"{measure.label}: expected numbers from 0 up, got {measure.dense} and {measure.sparse}")
    columns = min(COLUMNS, len(measures))
    rows = -(-len(measures) // columns)
    height = 1.0 + 1.15 * rows
    figure = style.new_figure(11, height)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    figure.subplots_adjust(left=0.085, right=0.985, top=1 - 1.1 / height, bottom=0.1 / height, wspace=0.12, hspace=0.55)
    for place, (axes, measure) in enumerate(zip(panels, measures, strict=False)):
        values = [measure.dense, measure.sparse]
        axes.barh([0, 1], values, color=[style.GREY, style.COLOURS[0]], height=0.66)
        ratio = f"  ({measure.sparse / measure.dense:.2f} of dense)" if measure.dense else ""
        for y, value in enumerate(values):
            text = measure.form.format(value) + (ratio if y else "")
            axes.annotate(text, (value, y), (4, 0), textcoords="offset points", fontsize=9.5, va="center")
        axes.set_title(measure.label, loc="left", fontsize=10)
        axes.set_xlim(0, 2.0 * (max(values) or 1))  # room for the numbers
        axes.set_ylim(1.5, -0.5)
        axes.set_yticks([0, 1], names if place % columns == 0 else ["", ""], fontsize=9.5)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    for axes in panels[len(measures) :]:
        axes.remove()
    style.headline(figure, title, subtitle, left=0.02)
    style.save(figure, path)
