"""Saving over an older model: of what the folder holds afterwards, only what was written now may be loaded."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

logger = logging.get_logger(__name__)


def save_pretrained(self: PreTrainedModel, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> Any:
    """transformers' own, for a condensed model; weights of an earlier save that would be loaded instead are removed.

    transformers clears away older shards, but leaves a single file beside new shards, and `from_pretrained` prefers it
    (`findings/transformers-resharding-leaves-the-old-model.sh`).
    """
    pair = [Path(save_directory) / name for name in _names(kwargs.get("variant"))]
    before = [_stamp(file) for file in pair]
    result = type(self).save_pretrained(self, save_directory, *args, **kwargs)
    if kwargs.get("is_main_process", args[0] if args else True):
        written = [_stamp(file) not in (None, stamp) for file, stamp in zip(pair, before, strict=True)]
        for file, is_new, other_is_new in zip(pair, written, reversed(written), strict=True):
            if file.is_file() and other_is_new and not is_new:
                file.unlink()
                logger.warning(
                    f"{file} was removed: it belongs to a model saved here before, and would have been loaded"
                )
    return result


def _names(variant: str | None) -> tuple[str, str]:
    """Of the single file of weights, and of the index of shards."""
    if variant is None:
        return SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME
    return f"model.{variant}.safetensors", f"model.safetensors.index.{variant}.json"


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Changes with every write; None if there is no such file."""
    if not file.is_file():
        return None
    status = os.stat(file)
    return status.st_mtime_ns, status.st_ino, status.st_size
