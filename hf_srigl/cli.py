"""The command line: `hf-srigl demo` and `hf-srigl inspect`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import transformers
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging

from hf_srigl.demo import run_demo
from hf_srigl.report import sparsity_report
from hf_srigl.surgery import config_of

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit code is 0, or 1 after one sentence on stderr for what can be expected to fail.

    Args:
        argv: without the program's name; default: the process's.

    Raises:
        SystemExit: argparse's, after help (0) and wrong usage (2).

    Example:
        >>> main(["inspect", "no/such/folder"])
        1
    """
    arguments = _parser().parse_args(argv)
    try:
        with _without_loading_bars():
            arguments.run(arguments)
    except _Expected as error:
        print(f"hf-srigl: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nhf-srigl: interrupted", file=sys.stderr)
        return 130
    return 0


class _Expected(Exception):
    """A failure that is explained by one sentence and needs no traceback."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-srigl",
        description="Sparse stays sparse: SRigL training for Hugging Face transformers.",
        epilog="hf-srigl COMMAND --help says more about a command.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="train a small ViT sparse on real digits, beside its dense twin (about two minutes on two cores)",
        description="Trains a small ViT from scratch on MNIST digits, sparse and, for comparison, dense; evaluates both, "
        "saves them, reloads the sparse one in a new process, and ends with a table and a picture. Needs no network.",
    )
    demo.add_argument(
        "--output", type=Path, default=Path("demo_output"), metavar="DIR", help="folder for the files (demo_output)"
    )
    length = demo.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=_epochs, default=8, metavar="N", help="passes over the 4,000 digits (8)")
    length.add_argument("--max-steps", type=_steps, metavar="N", help="optimizer steps instead, 10 for a quick look")
    demo.add_argument(
        "--sparsity", type=_sparsity, default=0.9, metavar="S", help="share of zeros in the target layers (0.9)"
    )
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="of weights, topology and order of digits (0)")
    demo.set_defaults(run=_demo)

    inspect = commands.add_parser(
        "inspect",
        help="check a condensed checkpoint; print its configuration and how sparse it is",
        description="Loads a condensed checkpoint, which checks it, and prints its configuration and its sparsity, layer "
        "by layer and as a whole.",
    )
    inspect.add_argument("path", type=Path, metavar="PATH", help="folder written by save_pretrained or by the Trainer")
    inspect.add_argument("--json", action="store_true", help="print JSON, for scripts")
    inspect.set_defaults(run=_inspect)
    return parser


def _demo(arguments: argparse.Namespace) -> None:
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _Expected(f"cannot write to {arguments.output}: {error.strerror}") from error
    try:
        run_demo(
            arguments.output,
            epochs=arguments.epochs,
            max_steps=arguments.max_steps,
            sparsity=arguments.sparsity,
            seed=arguments.seed,
        )
    except ImportError as error:
        raise _Expected(str(error)) from error


def _inspect(arguments: argparse.Namespace) -> None:
    model = _load_condensed(arguments.path)
    config, report = config_of(model), sparsity_report(model)
    if config is None:
        raise _Expected(f"{arguments.path} was loaded, but not as a condensed model")
    architecture = type(model).__name__
    if arguments.json:
        facts = {"path": str(arguments.path), "architecture": architecture}
        print(json.dumps({**facts, "config": config.to_dict(), "report": report.to_dict()}, indent=2))
        return
    print(f"{arguments.path}: {architecture}, condensed\n")
    for option, value in config.to_dict().items():
        print(f"{option:16} {'-' if value is None or value == [] else value}")
    print(f"\n{report}")


def _load_condensed(path: Path) -> PreTrainedModel:
    """The model in `path`, loaded with the class that wrote it."""
    file = path / "config.json"
    if not path.exists():
        raise _Expected(f"there is no {path}; give the folder that save_pretrained wrote")
    if not file.is_file():
        raise _Expected(f"{path} is not a checkpoint: expected a folder with a config.json in it")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        quantization, architectures = config.get("quantization_config") or {}, config.get("architectures") or []
        method = quantization.get("quant_method")
    except (OSError, ValueError, AttributeError) as error:
        raise _Expected(f"{file} is not a model configuration: {_one_line(error)}") from error
    if method != "srigl":
        found = "a dense one" if method is None else f"one of quant_method {method!r}"
        raise _Expected(f"{path} is not a condensed checkpoint but {found} (quantization_config in {file.name})")
    loader = getattr(transformers, architectures[0], AutoModel) if architectures else AutoModel
    verbosity = logging.get_verbosity()
    try:
        logging.set_verbosity_error()  # what matters of its warnings is said below
        model, info = loader.from_pretrained(path, dtype="auto", output_loading_info=True)
    except Exception as error:  # whatever it is that a damaged file provokes in transformers
        raise _Expected(f"{path} cannot be loaded: {_one_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    if info["missing_keys"]:
        raise _Expected(
            f"{path} lacks weights of its {type(model).__name__}: {', '.join(sorted(info['missing_keys']))}"
        )
    return model


@contextmanager
def _without_loading_bars() -> Iterator[None]:
    """transformers' bars for reading and writing weights are off inside; progress bars of training are not these."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _epochs(text: str) -> float:
    return _number(text, float, lambda v: 0 < v < float("inf"), "a number of epochs above 0")


def _steps(text: str) -> int:
    return _number(text, int, lambda v: v >= 1, "a whole number of steps of at least 1")


def _sparsity(text: str) -> float:
    return _number(text, float, lambda v: 0 <= v < 1, "a number in [0, 1)")


def _number(text: str, kind: Callable[[str], T], accept: Callable[[T], bool], expected: str) -> T:
    try:
        value = kind(text)
        accepted = accept(value)
    except ValueError:
        accepted = False
    if not accepted:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value
