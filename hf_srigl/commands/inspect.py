"""`hf-srigl inspect`: is a condensed checkpoint sound, how was it made, how sparse is it."""

from __future__ import annotations

import argparse
import json

import torch

from hf_srigl.commands import common
from hf_srigl.commands.checkpoints import Loaded, fetch, load_condensed, weight_files
from hf_srigl.commands.common import CommandError, Commands, count, megabytes
from hf_srigl.model.attachment import config_of
from hf_srigl.model.report import sparsity_report

EXAMPLES = """examples:
  hf-srigl inspect out/checkpoint-500
  hf-srigl inspect someone/bert-90-percent-sparse
  hf-srigl inspect out/sparse --json | jq .report.model_sparsity
"""


def add(commands: Commands) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="check a condensed checkpoint; print its configuration and how sparse it is",
        description="Loads a condensed checkpoint, which checks every file, layer and value, and prints its configuration and "
        "its sparsity, layer by layer and as a whole. Exit code 1 if anything is wrong with it.",
        epilog=EXAMPLES,
        formatter_class=common.Help,
    )
    inspect.add_argument(
        "path",
        metavar="PATH|HUB_ID",
        help="folder written by save_pretrained or by the Trainer, or the name of a model on the Hub",
    )
    inspect.add_argument("--json", action="store_true", help="print JSON, for scripts")
    inspect.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    loaded = load_condensed(fetch(arguments.path))
    check_values(loaded)
    config, report = config_of(loaded.model), sparsity_report(loaded.model)
    if config is None:
        raise CommandError(f"{arguments.path} was loaded, but not as a condensed model")
    architecture, dtype = type(loaded.model).__name__, str(loaded.model.dtype).removeprefix("torch.")
    files = weight_files(loaded.folder)
    size = sum(file.stat().st_size for file in files)
    if arguments.json:
        facts = {
            "path": arguments.path,
            "architecture": architecture,
            "dtype": dtype,
            "files": [file.name for file in files],
            "file_bytes": size,
            "sound": True,
            "unused_tensors": list(loaded.unused),
            "config": config.to_dict(),
            "report": report.to_dict(),
        }
        print(json.dumps(facts, indent=2))
        return
    print(f"{arguments.path}: {architecture}, condensed, {dtype}, {megabytes(size)} in {count(len(files), 'file')}")
    print(f"sound: {count(len(report.rows), 'condensed layer')} valid, no weight missing, every value finite")
    if loaded.unused:
        print(
            f"the files also hold {count(len(loaded.unused), 'tensor')} that no layer reads, first {loaded.unused[0]}"
        )
    print()
    for option, value in config.to_dict().items():
        print(f"{option:16} {'-' if value is None or value == [] else value}")
    print(f"\n{report}")


def check_values(loaded: Loaded) -> None:
    """Raise CommandError if a parameter holds NaN or inf, which no check of the format looks for."""
    for name, parameter in loaded.model.named_parameters():
        bad = int((~torch.isfinite(parameter.detach())).sum())
        if bad:
            raise CommandError(
                f"{loaded.folder} is damaged: {name} holds NaN or inf in {count(bad, 'place')}; the training may have "
                "diverged, take an earlier checkpoint"
            )
