"""What the pictures share: figure, colours, names of layers, labels that do not overlap."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from statistics import fmean
from typing import Any

from hf_srigl import install

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # told apart by colour-blind readers too
STYLES = ("-", "--", ":")  # for more kinds than colours
GREY = "#8a8a8a"
LONGEST_LABEL = 26  # characters; longer ones lose their middle
MOST_LABELS = 10  # that fit beside one panel
RIGHT = 0.78  # of the figure's width; labels stand to the right of it


@dataclass(frozen=True)
class Look:
    """How the lines of one kind of layers are drawn."""

    colour: str = GREY
    style: str = "-"


def new_figure(width: float = 10, height: float = 8) -> Any:
    """An empty matplotlib figure of a size in inches, drawn without a window.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> new_figure().axes
        []
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"drawing needs matplotlib: {install.how('plots')}") from error
    return Figure(figsize=(width, height))


def save(figure: Any, path: str | PathLike[str]) -> None:
    """Write a figure; the ending of `path` tells the format.

    Raises:
        ValueError: matplotlib cannot write that format.
    """
    figure.savefig(path, dpi=130)


def headline(figure: Any, title: str, subtitle: str, *, left: float = 0.07) -> None:
    """What the picture shows in one line, and one line of circumstances, at the top."""
    height = figure.get_size_inches()[1]
    figure.text(left, 1 - 0.3 / height, title, fontsize=13, fontweight="bold", va="center")
    figure.text(left, 1 - 0.62 / height, subtitle, fontsize=9.5, color="#555555", va="center")


def tidy(axes: Any, title: str) -> None:
    """No frame but two axes, a light grid, the panel's title at its left."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)


def kind_labels(names: Sequence[str]) -> dict[str, str]:
    """Layer name -> what to call its kind: the shortest ending, without numbers, that tells the kinds apart.

    Of a long one the middle is left out where that is enough to tell.

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
        for end in range(1, length - 1) if len(labels[name]) > LONGEST_LABEL else ():
            start = parts[-length]  # tells together with an ending, without what lies between?
            if all(o == parts for o in kinds.values() if start in o and o[-end:] == parts[-end:]):
                labels[name] = f"{start}…{'.'.join(parts[-end:])}"
                break
    return labels


def looks_of(labels: Sequence[str]) -> dict[str, Look]:
    """A look for each kind, colours first; after 18 kinds they repeat.

    Example:
        >>> [(look.colour, look.style) for look in looks_of(["fc1", "fc2"]).values()]
        [('#0072B2', '-'), ('#D55E00', '-')]
    """
    kinds = list(dict.fromkeys(labels))
    return {
        kind: Look(COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]) for i, kind in enumerate(kinds)
    }


def label_ends(axes: Any, x: float, ends: Mapping[str, tuple[float, str]]) -> None:
    """Write each label beside the right end of its line: label -> (where the line ends, colour).

    Labels of one colour that end at one place share a line of text; if there are too many, so do the nearest of one colour.
    """
    top = axes.get_ylim()[1]
    groups = sorted(((y, colour, [label]) for label, (y, colour) in ends.items()), key=lambda group: group[:2])
    while len(groups) > 1:
        pairs = [(b[0] - a[0], i) for i, (a, b) in enumerate(pairwise(groups)) if a[1] == b[1]]
        nearest, i = min(pairs, default=(top, -1))
        if i < 0 or (nearest > 0.005 * top and len(groups) <= MOST_LABELS):
            break
        (low, colour, some), (high, _, more) = groups[i : i + 2]
        centre = (low * len(some) + high * len(more)) / (len(some) + len(more))
        groups[i : i + 2] = [(centre, colour, some + more)]
    heights = spread([y for y, _, _ in groups], gap=min(0.1, 1 / max(1, len(groups))) * top, top=top)
    for (_, colour, labels), height in zip(groups, heights, strict=True):
        axes.annotate(
            in_few_words(labels), (x, height), (6, 0), textcoords="offset points", color=colour, fontsize=9, va="center",
            annotation_clip=False,
        )  # fmt: skip


def in_few_words(labels: Sequence[str], room: int = 30) -> str:
    """The labels, as many as fit, and how many more there are.

    Example:
        >>> in_few_words(["query", "key"]), in_few_words(["encoder.output.dense", "query", "key", "value", "dense"])
        ('query, key', 'encoder.output.dense + 4 more')
    """
    for shown in range(len(labels), 1, -1):
        rest = len(labels) - shown
        text = ", ".join(labels[:shown]) + (f" + {rest} more" if rest else "")
        if len(text) <= room:
            return text
    more = f" + {len(labels) - 1} more" if len(labels) > 1 else ""
    room -= len(more)
    return (labels[0] if len(labels[0]) <= room else f"…{labels[0][1 - room :]}") + more


def spread(values: Sequence[float], gap: float, top: float) -> list[float]:
    """The values, moved as little as possible so that neighbours are `gap` apart and all between 0 and `top`.

    Less ``rank * gap`` they need only be in order: neighbours that are not share their mean.

    Example:
        >>> spread([3.0, 1.0, 3.0], gap=1.0, top=10.0)
        [2.5, 1.0, 3.5]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    pools: list[list[float]] = []
    for rank, i in enumerate(order):
        pools.append([values[i] - rank * gap])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    in_order = [fmean(pool) for pool in pools for _ in pool]
    room = top - gap * (len(values) - 1)  # less rank * gap, what the highest may be
    placed = dict(zip(order, (max(0.0, min(v, room)) + rank * gap for rank, v in enumerate(in_order)), strict=True))
    return [placed[i] for i in range(len(values))]
