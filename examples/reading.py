"""Data for the examples from the Hub and from files, through `datasets`; what is wrong is said with the file and its cause."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import datasets

from shared import UserError, check_file, explained, one_line, suffix_of

ROWS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")  # files whose rows have columns

_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    ".txt": ("text", {"keep_linebreaks": True, "encoding": "utf-8-sig"}),
    # An empty cell is empty; the words null, NA and the like are words.
    ".csv": ("csv", {"keep_default_na": False, "na_values": [""], "encoding": "utf-8-sig"}),
    ".tsv": ("csv", {"sep": "\t", "keep_default_na": False, "na_values": [""], "encoding": "utf-8-sig"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}


def load_data(kind: str, *arguments: Any, **options: Any) -> datasets.DatasetDict:
    """`datasets.load_dataset`, with its errors in one sentence.

    Raises:
        UserError: the data cannot be found, reached or read.
    """
    kinds = (OSError, ValueError, TypeError, ConnectionError, datasets.exceptions.DatasetsError)
    try:
        return datasets.load_dataset(kind, *arguments, **options)
    except kinds as error:
        files = ", ".join(options.get("data_files", {"": kind}).values())
        cause: BaseException = error
        while isinstance(cause.__cause__, Exception):  # datasets' own sentence says only that something happened
            cause = cause.__cause__
        if "corresponds to no data" in f"{error} {cause}":
            raise UserError(f"the data is empty: {files}") from error
        raise UserError(f"the data cannot be loaded: {files}: {one_line(cause)}") from error


def load_files(files: Mapping[str, str], suffixes: tuple[str, ...], cache_dir: str | None) -> datasets.DatasetDict:
    """Split -> rows of its file. Each is read by itself, so that the columns of one say nothing about those of another.

    Raises:
        UserError: a file is missing, empty, of another kind or encoding, or cannot be read.
    """
    for split, path in files.items():
        check_file(path, f"--{split}_file", suffixes)
    data = datasets.DatasetDict()
    for split, path in files.items():
        if suffix_of(path) != ".parquet":
            check_encoding(path)
        kind, options = _KINDS[suffix_of(path)]
        data[split] = load_data(kind, data_files={split: path}, cache_dir=cache_dir, **options)[split]
    return data


def opened(path: str | Path) -> BinaryIO:
    """A file for reading bytes, unpacked if it ends with .gz."""
    return gzip.open(path) if Path(path).suffix.lower() == ".gz" else open(path, "rb")  # type: ignore[return-value]


def check_encoding(path: str | Path) -> None:
    """Raises `UserError` at the first line of a text file that is not UTF-8."""
    with explained(OSError, EOFError, zlib.error, before=f"{path} cannot be read: "), opened(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1 and (line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in line):
                raise UserError(
                    f"{path} is UTF-16 or no text at all, expected UTF-8: iconv -f utf-16 -t utf-8 makes it so"
                )
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}, line {number}: expected UTF-8, found the byte 0x{line[error.start]:02x}; if it was saved as "
                    "latin-1, iconv -f latin1 -t utf-8 makes it UTF-8"
                ) from error


def choose(data: datasets.Dataset, limit: int | None, name: str, empty: str = "") -> datasets.Dataset:
    """The first `limit` rows.

    Raises:
        UserError: there are none; `empty` says why, if that is known.
    """
    if limit is not None:
        data = data.select(range(min(limit, len(data))))
    if len(data) == 0:
        raise UserError(empty or f"the {name} data is empty")
    return data
