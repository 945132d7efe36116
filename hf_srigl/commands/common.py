"""What the commands share: expected failures, numbers from the command line, the model behind a path."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import transformers
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging

T = TypeVar("T")

Commands = argparse._SubParsersAction  # what `add_parser` is called on; argparse has no public name for it


class CommandError(Exception):
    """A failure that one sentence explains and that needs no traceback: printed on stderr, exit code 1."""


def load_condensed(path: Path) -> PreTrainedModel:
    """The condensed model in the folder `path`, loaded with the class that wrote it, in the dtype it was written in.

    Raises:
        CommandError: there is none, it is dense or of another kind, damaged or incomplete.
    """
    file = path / "config.json"
    if not path.exists():
        raise CommandError(f"there is no {path}; give the folder that save_pretrained wrote")
    if not file.is_file():
        raise CommandError(f"{path} is not a checkpoint: expected a folder with a config.json in it")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        quantization, architectures = config.get("quantization_config") or {}, config.get("architectures") or []
        method = quantization.get("quant_method")
    except (OSError, ValueError, AttributeError) as error:
        raise CommandError(f"{file} is not a model configuration: {one_line(error)}") from error
    if method != "srigl":
        found = "a dense one" if method is None else f"one of quant_method {method!r}"
        raise CommandError(f"{path} is not a condensed checkpoint but {found} (quantization_config in {file.name})")
    loader = getattr(transformers, architectures[0], AutoModel) if architectures else AutoModel
    verbosity = logging.get_verbosity()
    try:
        logging.set_verbosity_error()  # what matters of its warnings is said below
        model, info = loader.from_pretrained(path, dtype="auto", output_loading_info=True)
    except Exception as error:  # whatever it is that a damaged file provokes in transformers
        raise CommandError(f"{path} cannot be loaded: {one_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    if info["missing_keys"]:
        raise CommandError(
            f"{path} lacks weights of its {type(model).__name__}: {', '.join(sorted(info['missing_keys']))}"
        )
    return model


@contextmanager
def without_loading_bars() -> Iterator[None]:
    """transformers' bars for reading and writing weights are off inside; progress bars of training are not these."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def one_line(error: Exception) -> str:
    """What an error says, without line breaks.

    Example:
        >>> one_line(ValueError("a\\n  b")), one_line(ValueError())
        ('a b', 'ValueError')
    """
    return " ".join(str(error).split()) or type(error).__name__


def epochs(text: str) -> float:
    """An argparse type: a number of epochs."""
    return _number(text, float, lambda v: 0 < v < float("inf"), "a number of epochs above 0")


def steps(text: str) -> int:
    """An argparse type: a number of steps."""
    return _number(text, int, lambda v: v >= 1, "a whole number of steps of at least 1")


def sparsity(text: str) -> float:
    """An argparse type: a share of zeros.

    Example:
        >>> sparsity("1.5")
        Traceback (most recent call last):
        ...
        argparse.ArgumentTypeError: expected a number in [0, 1), got '1.5'
    """
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
