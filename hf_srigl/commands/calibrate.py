"""Text for calibrating a checkpoint that is condensed without training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from hf_srigl.commands.common import CommandError, one_line

EXAMPLES_READ = 128
_AT_ONCE, _MAX_TOKENS = 8, 512
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model")


def text_batches(folder: Path, file: Path, positions: int | None) -> Iterator[dict[str, Any]]:
    """The first lines of `file` that are not empty, as the tokenizer in `folder` reads them, in batches.

    Args:
        positions: how many tokens the model can take, if there is a limit.

    Raises:
        CommandError: the file cannot be read or has no text, or there is no tokenizer.
    """
    try:
        with file.open(encoding="utf-8") as text:
            lines = [line for line in map(str.strip, text) if line][:EXAMPLES_READ]
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read {file}: {one_line(error)}") from error
    if not lines:
        raise CommandError(f"{file} has no text to calibrate on: expected one example a line")
    if not any((folder / name).is_file() for name in _VOCABULARIES):  # transformers would make up an empty tokenizer
        raise CommandError(f"--calibrate needs a tokenizer beside the weights, found none in {folder}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CommandError(f"the tokenizer in {folder} cannot be loaded: {one_line(error)}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    length = min(_MAX_TOKENS, tokenizer.model_max_length, positions or _MAX_TOKENS)
    for start in range(0, len(lines), _AT_ONCE):
        batch = tokenizer(
            lines[start : start + _AT_ONCE], padding=True, truncation=True, max_length=length, return_tensors="pt"
        )
        yield dict(batch)
