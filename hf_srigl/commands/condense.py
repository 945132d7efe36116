"""`hf-srigl condense`: a dense checkpoint made condensed in one shot, without training."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from hf_srigl.commands import common
from hf_srigl.commands.calibrate import EXAMPLES_READ, text_batches
from hf_srigl.commands.checkpoints import (
    Loaded,
    Written,
    check_new,
    copy_companions,
    fetch,
    load_dense,
    new_folder,
    weight_files,
)
from hf_srigl.commands.common import CommandError, Commands, count, megabytes, one_line
from hf_srigl.config import SRigLConfig
from hf_srigl.files.card import write_card
from hf_srigl.model.attachment import config_of
from hf_srigl.model.masks import ZerosInLayer, condense_zeros
from hf_srigl.model.report import SparsityReport, sparsity_report
from hf_srigl.model.surgery import sparsify

EXAMPLES = """examples:
  hf-srigl condense bert-base-uncased out --sparsity 0.8
  hf-srigl condense my/dense out --sparsity 0.9 --distribution erk --exclude-modules lm_head
  hf-srigl condense my/dense out --sparsity 0.5 --target-modules '.*mlp.*'
  hf-srigl condense my/pruned out --from-zeros
  hf-srigl condense my/dense out --sparsity 0.7 --calibrate sentences.txt

One-shot sparsification loses accuracy, the more the sparser: train the result on (SparseTrainer), or sparsify during
training in the first place. --from-zeros loses nothing: each layer stores its rows as long as the row with most
non-zeros, shorter rows are filled up with zeros, rows of zeros become ablated neurons, and a layer that would not
shrink stays dense. --calibrate weighs each weight with the size of its input on some text (Wanda, arXiv 2306.11695), which
loses less than size alone.
"""

_LAYER_OPTIONS = ("target_modules", "exclude_modules", "never_ablate")


def add(commands: Commands) -> None:
    condense = commands.add_parser(
        "condense",
        help="make a dense model condensed in one shot",
        description="Reads a dense checkpoint and writes a condensed one, with the tokenizer or processor and whatever else "
        "lies beside the weights. Keeps the largest weights of each neuron, or exactly those that are not 0.",
        epilog=EXAMPLES,
        formatter_class=common.Help,
    )
    condense.add_argument("dense", metavar="DENSE", help="folder of a dense model, or its name on the Hub")
    condense.add_argument("out", type=Path, metavar="OUT", help="new folder for the condensed model")
    how = condense.add_mutually_exclusive_group()
    how.add_argument(
        "--sparsity",
        type=common.sparsity,
        metavar="S",
        help=f"share of zeros in the target layers, in [0, 1) ({SRigLConfig().sparsity})",
    )
    how.add_argument("--from-zeros", action="store_true", help="keep every weight that is not 0, and none that is")
    condense.add_argument(
        "--calibrate",
        type=Path,
        metavar="FILE",
        help=f"text, one example a line, of which {EXAMPLES_READ} are read: choose weights by size times input (Wanda)",
    )
    condense.add_argument(
        "--distribution", choices=("uniform", "erk"), help="the same density in every layer, or denser small layers"
    )
    condense.add_argument(
        "--target-modules",
        nargs="+",
        metavar="NAME",
        help="layers to make sparse: endings of their names, or one regular expression for the full name "
        "(every linear layer but the output heads)",
    )
    condense.add_argument("--exclude-modules", nargs="+", metavar="NAME", help="layers to leave dense, read likewise")
    condense.add_argument(
        "--never-ablate", nargs="+", metavar="NAME", help="layers that keep all neurons in a later training"
    )
    condense.add_argument(
        "--config", type=Path, metavar="FILE", help="an SRigLConfig as JSON, for all its options; the options above win"
    )
    condense.add_argument("--json", action="store_true", help="print JSON, for scripts")
    condense.set_defaults(run=run, refuse=condense.error)


def run(arguments: argparse.Namespace) -> None:
    if arguments.from_zeros and arguments.distribution is not None:
        arguments.refuse("--distribution has no meaning with --from-zeros: the zeros say how dense each layer is")
    if arguments.from_zeros and arguments.calibrate is not None:
        arguments.refuse("--calibrate has no meaning with --from-zeros: the zeros say which weights stay")
    config = config_from(arguments)
    check_new(arguments.out)  # before anything is downloaded
    with common.loading_bars(common.on_terminal()):
        source = load_dense(fetch(arguments.dense, companions=True))
        dense_bytes = sum(file.stat().st_size for file in weight_files(source.folder))
        zeros: tuple[ZerosInLayer, ...] = ()
        try:
            if arguments.from_zeros:
                zeros = condense_zeros(source.model, config, progress=True)
            else:
                positions = getattr(source.model.config, "max_position_embeddings", None)
                calibrate = arguments.calibrate
                batches = None if calibrate is None else text_batches(source.folder, calibrate, positions)
                sparsify(source.model, config, calibration=batches, progress=True)
        except (ValueError, TypeError, IndexError, RuntimeError) as error:  # of the model, on text it cannot take
            raise CommandError(f"{arguments.dense} cannot be condensed: {one_line(error)}") from error
        written = write(source, arguments.out)
    report = sparsity_report(source.model)
    if arguments.json:
        facts = _facts(arguments, source, written, report, zeros)
        print(json.dumps({**facts, "dense_file_bytes": dense_bytes}, indent=2))
        return
    condensed_bytes = sum(file.stat().st_size for file in weight_files(arguments.out))
    architecture, dtype = type(source.model).__name__, str(source.model.dtype).removeprefix("torch.")
    print(f"dense      {megabytes(dense_bytes):>10}  {arguments.dense} ({architecture}, {dtype})")
    print(
        f"condensed  {megabytes(condensed_bytes):>10}  {arguments.out} ({condensed_bytes / dense_bytes:.2f} of dense)"
    )
    print(f"copied     {', '.join(written.copied) or 'nothing: there is neither tokenizer nor processor'}")
    if written.left:
        print(f"not copied {', '.join(written.left)}")
    if source.unused:
        print(
            f"not used   {count(len(source.unused), 'tensor')} that {architecture} does not have: {_few(source.unused)}"
        )
    if zeros:
        print(f"\n{describe(zeros)}")
    print(f"\n{report}")


def config_from(arguments: argparse.Namespace) -> SRigLConfig:
    """The configuration that the options ask for: those of ``--config``, with each one given by itself put over it."""
    try:
        config = SRigLConfig() if arguments.config is None else SRigLConfig.from_json_file(arguments.config)
        given: dict[str, Any] = {name: getattr(arguments, name) for name in ("sparsity", "distribution")}
        given |= {name: names_or_pattern(getattr(arguments, name)) for name in _LAYER_OPTIONS}
        given = {name: value for name, value in given.items() if value is not None}
        # One shot: there is no training in which a ramp could rise
        given |= {"init": "magnitude" if arguments.calibrate is None else "wanda", "ramp_until": None, "ramp_from": 0.0}
        return dataclasses.replace(config, **given)
    except OSError as error:
        raise CommandError(f"cannot read {arguments.config}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise CommandError(one_line(error)) from error


def names_or_pattern(values: list[str] | None) -> list[str] | str | None:
    """A single value with characters that no name of a layer has is a regular expression.

    Example:
        >>> names_or_pattern(["query", "layer.0.key"]), names_or_pattern([".*mlp.*"]), names_or_pattern(["query"])
        (['query', 'layer.0.key'], '.*mlp.*', ['query'])
    """
    if values is not None and len(values) == 1 and re.search(r"[^\w.-]", values[0]):
        return values[0]
    return values


def write(source: Loaded, out: Path) -> Written:
    """Write the model and all that belongs to it into the new folder `out`, whole or not at all."""
    with new_folder(out) as folder:
        source.model.save_pretrained(folder)
        written = copy_companions(source.folder, folder)
        if (folder / "README.md").is_file():
            write_card(source.model, folder / "README.md")
    return written


def describe(zeros: tuple[ZerosInLayer, ...]) -> str:
    """What `condense_zeros` found, in a few lines."""
    done = [layer for layer in zeros if layer.condensed]
    left = [layer for layer in zeros if not layer.condensed]
    positions = sum(layer.neurons * layer.inputs for layer in done)
    share, stored = (sum(values) / positions for values in ([x.nonzeros for x in done], [x.slots for x in done]))
    lines = [
        f"{count(len(done), 'layer')} condensed: {1 - share:.2%} of their weights are 0, {1 - stored:.2%} are not stored"
    ]
    uneven = [layer for layer in done if layer.fewest < layer.most]
    if uneven:
        worst = max(uneven, key=lambda layer: layer.slots / max(1, layer.nonzeros))
        lines.append(
            f"rows of {len(uneven)} of them differ in length and are filled up with zeros; most in {worst.name}, "
            f"whose rows have {worst.fewest} to {worst.most} non-zeros"
        )
    empty = sum(layer.empty for layer in done)
    if empty:
        lines.append(f"{count(empty, 'neuron')} with nothing but zeros became ablated")
    if left:
        names = _few(tuple(f"{layer.name} (up to {layer.most} non-zeros of {layer.inputs})" for layer in left))
        lines.append(f"{count(len(left), 'layer')} left dense, since the condensed form would not be smaller: {names}")
    return "\n".join(lines)


def _facts(
    arguments: argparse.Namespace,
    source: Loaded,
    written: Written,
    report: SparsityReport,
    zeros: tuple[ZerosInLayer, ...],
) -> dict[str, Any]:
    config = config_of(source.model)
    return {
        "source": arguments.dense,
        "path": str(arguments.out),
        "architecture": type(source.model).__name__,
        "dtype": str(source.model.dtype).removeprefix("torch."),
        "method": "zeros" if arguments.from_zeros else "magnitude" if arguments.calibrate is None else "wanda",
        "file_bytes": sum(file.stat().st_size for file in weight_files(arguments.out)),
        "copied": written.copied,
        "not_copied": written.left,
        "unused_tensors": list(source.unused),
        "zeros": [dataclasses.asdict(layer) for layer in zeros],
        "config": None if config is None else config.to_dict(),
        "report": report.to_dict(),
    }


def _few(names: tuple[str, ...], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
