"""`hf-srigl inspect`: is a condensed checkpoint sound, how was it made, how sparse is it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hf_srigl.commands.common import CommandError, Commands, load_condensed
from hf_srigl.report import sparsity_report
from hf_srigl.surgery import config_of


def add(commands: Commands) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="check a condensed checkpoint; print its configuration and how sparse it is",
        description="Loads a condensed checkpoint, which checks it, and prints its configuration and its sparsity, layer "
        "by layer and as a whole.",
    )
    inspect.add_argument("path", type=Path, metavar="PATH", help="folder written by save_pretrained or by the Trainer")
    inspect.add_argument("--json", action="store_true", help="print JSON, for scripts")
    inspect.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    model = load_condensed(arguments.path)
    config, report = config_of(model), sparsity_report(model)
    if config is None:
        raise CommandError(f"{arguments.path} was loaded, but not as a condensed model")
    architecture = type(model).__name__
    if arguments.json:
        facts = {"path": str(arguments.path), "architecture": architecture}
        print(json.dumps({**facts, "config": config.to_dict(), "report": report.to_dict()}, indent=2))
        return
    print(f"{arguments.path}: {architecture}, condensed\n")
    for option, value in config.to_dict().items():
        print(f"{option:16} {'-' if value is None or value == [] else value}")
    print(f"\n{report}")
