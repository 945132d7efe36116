"""`hf-srigl inspect`: what a checkpoint is; if condensed, whether it is sound, how it was made and how sparse it is."""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from hf_srigl.commands import common
from hf_srigl.commands.checkpoints import Loaded, fetch, load_condensed, load_dense, read_config, weight_files
from hf_srigl.commands.common import CommandError, Commands, count, megabytes
from hf_srigl.config import SRigLConfig
from hf_srigl.model.attachment import config_of
from hf_srigl.model.report import sparsity_report
from hf_srigl.model.targets import find_targets

EXAMPLES = """examples:
  hf-srigl inspect out/checkpoint-500
  hf-srigl inspect someone/bert-90-percent-sparse
  hf-srigl inspect out/sparse --json | jq .report.model_sparsity
"""


def add(commands: Commands) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="check a checkpoint; print its configuration and how sparse it is, or could be",
        description="Loads a condensed checkpoint, which checks every file, layer and value, and prints its configuration and "
        "its sparsity, layer by layer and as a whole. Of a dense one it prints what could become sparse. Exit code 1 if "
        "anything is wrong with it.",
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
    folder = fetch(arguments.path)
    if not read_config(folder).get("quantization_config"):
        _describe_dense(arguments, load_dense(folder))
        return
    loaded = load_condensed(folder)
    check_values(loaded)
    config, report = config_of(loaded.model), sparsity_report(loaded.model)
    if config is None:
        raise CommandError(f"{arguments.path} was loaded, but not as a condensed model")
    facts = _facts(arguments.path, loaded, condensed=True)
    if arguments.json:
        print(json.dumps({**facts, "config": config.to_dict(), "report": report.to_dict()}, indent=2))
        return
    print(_headline(facts))
    print(f"sound: {count(len(report.rows), 'condensed layer')} valid, no weight missing, every value finite")
    if loaded.unused:
        print(
            f"the files also hold {count(len(loaded.unused), 'tensor')} that no layer reads, first {loaded.unused[0]}"
        )
    print()
    for option, value in config.to_dict().items():
        print(f"{option:16} {'-' if value is None or value == [] else value}")
    print(f"\n{report}")


def _describe_dense(arguments: argparse.Namespace, loaded: Loaded) -> None:
    check_values(loaded)
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    try:
        targets = find_targets(loaded.model, SRigLConfig())
    except ValueError as error:
        targets, none = {}, str(error)
    weights = sum(module.weight.numel() for module in targets.values())
    facts = _facts(arguments.path, loaded, condensed=False)
    if arguments.json:
        could = {"parameters": parameters, "could_be_sparse": {"layers": list(targets), "weights": weights}}
        print(json.dumps({**facts, **could}, indent=2))
        return
    print(_headline(facts))
    if not targets:
        print(f"{parameters:,} parameters; none of its layers could become sparse: {none}")
        return
    print(
        f"{parameters:,} parameters, {weights / parameters:.1%} of them in {count(len(targets), 'linear layer')} that could "
        f"become sparse; hf-srigl condense {arguments.path} OUT makes them so at once; training with "
        "SRigLConfig.for_finetuning loses less accuracy"
    )


def _facts(path: str, loaded: Loaded, *, condensed: bool) -> dict[str, Any]:
    files = weight_files(loaded.folder)
    return {
        "path": path,
        "architecture": type(loaded.model).__name__,
        "condensed": condensed,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "files": [file.name for file in files],
        "file_bytes": sum(file.stat().st_size for file in files),
        "sound": True,
        "unused_tensors": list(loaded.unused),
    }


def _headline(facts: dict[str, Any]) -> str:
    kind, files = "condensed" if facts["condensed"] else "dense", count(len(facts["files"]), "file")
    return f"{facts['path']}: {facts['architecture']}, {kind}, {facts['dtype']}, {megabytes(facts['file_bytes'])} in {files}"


def check_values(loaded: Loaded) -> None:
    """Raise CommandError if a parameter holds NaN or inf, which no check of the format looks for."""
    for name, parameter in loaded.model.named_parameters():
        bad = int((~torch.isfinite(parameter.detach())).sum())
        if bad:
            raise CommandError(
                f"{loaded.folder} is damaged: {name} holds NaN or inf in {count(bad, 'place')}; the training may have "
                "diverged, take an earlier checkpoint"
            )
