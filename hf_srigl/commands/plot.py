"""`hf-srigl plot`: a picture of a condensed model's layers, or of the training that made it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hf_srigl.commands import common
from hf_srigl.commands.checkpoints import fetch, load_condensed
from hf_srigl.commands.common import CommandError, Commands, count, one_line
from hf_srigl.model.report import sparsity_report
from hf_srigl.plots import plot_layers
from hf_srigl.plots.style import new_figure
from hf_srigl.training.history import HISTORY_FILE, History

EXAMPLES = """examples:
  hf-srigl plot out/sparse layers.png
  hf-srigl plot someone/bert-90-percent-sparse layers.svg
  hf-srigl plot out/checkpoint-500 topology.png --training
"""


def add(commands: Commands) -> None:
    plot = commands.add_parser(
        "plot",
        help="draw the layers of a condensed model, or its training",
        description="Draws sparsity, fan-in and active neurons of every layer of a condensed checkpoint; with --training, how "
        f"they changed in the training that wrote it (its {HISTORY_FILE}).",
        epilog=EXAMPLES,
        formatter_class=common.Help,
    )
    plot.add_argument(
        "path",
        metavar="PATH|HUB_ID",
        help="folder of a condensed model or output folder of a training, or the name of a model on the Hub",
    )
    plot.add_argument(
        "out", type=Path, metavar="OUT.png", help="the picture (png, svg, pdf); an old one is overwritten"
    )
    plot.add_argument("--training", action="store_true", help="draw the topology over the steps of the training")
    plot.add_argument("--title", metavar="TEXT", help="instead of what was found")
    plot.add_argument("--json", action="store_true", help="print JSON, for scripts")
    plot.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    formats = _formats()  # before anything is downloaded
    if arguments.out.suffix.removeprefix(".") not in formats:
        raise CommandError(f"cannot draw {arguments.out}: expected a name ending in .{', .'.join(sorted(formats))}")
    if arguments.out.is_dir() or not arguments.out.absolute().parent.is_dir():
        raise CommandError(f"cannot write to {arguments.out}: give a file in a folder that exists")
    folder = fetch(arguments.path, companions=arguments.training)
    try:
        drawn = _draw_training(folder, arguments) if arguments.training else _draw_layers(folder, arguments)
    except OSError as error:
        raise CommandError(f"cannot write to {arguments.out}: {error.strerror}") from error
    if arguments.json:
        print(json.dumps({"path": arguments.path, "picture": str(arguments.out), "drawn": drawn}, indent=2))
    else:
        print(f"{arguments.out}: {drawn}")


def _draw_layers(folder: Path, arguments: argparse.Namespace) -> str:
    report = sparsity_report(load_condensed(folder).model)
    plot_layers(report, arguments.out, title=arguments.title)
    return f"sparsity, fan-in and active neurons of {count(len(report.rows), 'layer')}"


def _draw_training(folder: Path, arguments: argparse.Namespace) -> str:
    file = folder / HISTORY_FILE
    if not file.is_file():
        raise CommandError(
            f"{folder} has no {HISTORY_FILE}: give the output folder or a checkpoint of a training; the layers of a model "
            "are drawn without --training"
        )
    try:
        history = History.load(file)
        history.draw(arguments.out, title=arguments.title)
    except ValueError as error:
        raise CommandError(one_line(error)) from error
    return f"fan-in, active neurons and connections over {count(len(history.reports), 'topology update')}"


def _formats() -> list[str]:
    try:
        return list(new_figure().canvas.get_supported_filetypes())
    except ImportError as error:
        raise CommandError(str(error)) from error
