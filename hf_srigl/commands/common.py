"""What the commands share: expected failures, progress bars, numbers from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from transformers.utils import logging

T = TypeVar("T")

Commands = argparse._SubParsersAction  # what `add_parser` is called on; argparse has no public name for it


class Help(argparse.HelpFormatter):
    """Wraps what is one paragraph, and leaves texts of several lines (examples) as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text.rstrip() if "\n" in text else super()._fill_text(text, width, indent)


class CommandError(Exception):
    """A failure that one sentence explains and that needs no traceback: printed on stderr, exit code 1."""


@contextmanager
def loading_bars(shown: bool) -> Iterator[None]:
    """transformers' bars (reading, condensing, writing) are on or off inside; progress bars of training are not these."""
    enabled = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    try:
        yield
    finally:
        (logging.enable_progress_bar if enabled else logging.disable_progress_bar)()


def on_terminal() -> bool:
    """Whether somebody watches stderr, where progress is shown."""
    return sys.stderr.isatty()


def one_line(error: Exception) -> str:
    """What an error says, without line breaks.

    Example:
        >>> one_line(ValueError("a\\n  b")), one_line(ValueError())
        ('a b', 'ValueError')
    """
    return " ".join(str(error).split()) or type(error).__name__


def megabytes(size: int) -> str:
    """A number of bytes for people.

    Example:
        >>> megabytes(438_000_000), megabytes(20_480)
        ('438.0 MB', '0.02 MB')
    """
    return f"{size / 1e6:.1f} MB" if size >= 1e7 else f"{size / 1e6:.2f} MB"


def count(number: int, thing: str) -> str:
    """A number and what it counts.

    Example:
        >>> count(1, "layer"), count(2, "layer")
        ('1 layer', '2 layers')
    """
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


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
