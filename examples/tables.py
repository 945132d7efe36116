"""Rows with columns for classification, from csv, tsv, json and parquet files or the Hub, with where each row stands.

They are read as they are written: a cell is text, and the words null, NA or None are words.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet
from datasets import Dataset

from reading import ROWS, check_encoding, opened
from shared import UserError, check_file, explained, one_line, suffix_of

logger = logging.getLogger("shared")

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Table:
    """The cells of one split, by column.

    `source` is what messages call it; `lines` are the numbers of its rows' lines, of files that have lines; `data` is the
    data set it is, if it comes from the Hub; `names` are the classes of columns that hold numbers of classes.
    """

    source: str
    columns: dict[str, Sequence[Any]]
    lines: list[int] | None = None
    data: Dataset | None = None
    names: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def at(self, row: int, column: str) -> str:
        """Where a cell stands, to begin a message with."""
        place = f"line {self.lines[row]}" if self.lines is not None else f"row {row + 1}"
        return f"{self.source}, {place}, column '{column}'"

    def require(self, column: str, option: str) -> None:
        """Raises `UserError` unless there is such a column."""
        if column not in self.columns:
            found = ", ".join(self.columns) or "none"
            raise UserError(f"{self.source} has no column '{column}' ({option}), only: {found}")

    def texts(self, columns: Sequence[str]) -> Dataset:
        """The columns with the sentences; a cell without text is an empty text, and a warning counts them.

        Raises:
            UserError: a column is missing, or a cell holds a list or an object.
        """
        cells = {}
        for column in columns:
            self.require(column, "--text_column_names")
            cells[column] = [_text(cell, self, row, column) for row, cell in enumerate(self.columns[column])]
            empty = [row for row, cell in enumerate(cells[column]) if not cell.strip()]
            if empty:
                more = f", and {len(empty) - 1} more" if len(empty) > 1 else ""
                logger.warning(f"{self.at(empty[0], column)}: no text{more}; read as empty texts.")
        if self.data is not None and all(_is_string(self.data, column) for column in columns):
            return self.data.select_columns(list(columns))  # so that its tokens can be kept in datasets' cache
        return Dataset.from_dict(cells)


def read_table(path: str, option: str) -> Table:
    """The rows of a csv, tsv, json, jsonl or parquet file, csv and json also with .gz.

    Raises:
        UserError: it cannot be read, or not as rows; the message names the line.
    """
    check_file(path, option, ROWS)
    kind = suffix_of(path)
    if kind == ".parquet":
        with explained(OSError, ValueError, before=f"{path} cannot be read: "):
            table = Table(path, pyarrow.parquet.read_table(path).to_pydict())
    else:
        check_encoding(path)
        with opened(path) as file:
            text = file.read().decode("utf-8-sig")
        table = _from_json(path, text) if kind.startswith(".json") else _from_csv(path, text, kind)
    if len(table) == 0:
        raise UserError(f"{path} has no rows" + (", only a head line" if kind in (".csv", ".tsv") else ""))
    return table


def table_of(data: Dataset, split: str) -> Table:
    """A split of a data set of the Hub."""
    features = {name: getattr(feature, "feature", feature) for name, feature in data.features.items()}
    names = {name: feature.names for name, feature in features.items() if hasattr(feature, "names")}
    if len(data) == 0:
        raise UserError(f"the {split} data is empty")
    return Table(f"the {split} data", {name: data[name][:] for name in data.column_names}, data=data, names=names)


def text_columns(table: Table, labels: Sequence[str]) -> list[str]:
    """The columns with the one or two sentences: `sentence1` and `sentence2`, or the first with text.

    Raises:
        UserError: there is none.
    """
    if {"sentence1", "sentence2"} <= set(table.columns):
        return ["sentence1", "sentence2"]
    others = [name for name in table.columns if name not in labels]
    found = [name for name in others if _holds_text(table, name)]
    if not found and len(others) == 1 and isinstance(table.columns[others[0]][0], str):
        found = others  # texts that happen to be numbers
    if not found:
        raise UserError(
            f"{table.source} has no column with sentences, only: {', '.join(table.columns)}; name it with --text_column_names"
        )
    return found[:2]


def is_empty(cell: Any) -> bool:
    """None, a text without characters, or a NaN, which is how pandas writes nothing."""
    return (
        cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and math.isnan(cell))
    )


def number_in(cell: Any) -> float | None:
    """The number that a cell holds or spells, None if it is no number."""
    if isinstance(cell, str):
        return float(cell) if _NUMBER.fullmatch(cell.strip()) else None
    return float(cell) if isinstance(cell, int | float) and not isinstance(cell, bool) else None


def _text(cell: Any, table: Table, row: int, column: str) -> str:
    if isinstance(cell, str):
        return cell
    if is_empty(cell):
        return ""
    if isinstance(cell, list | dict):
        raise UserError(f"{table.at(row, column)}: expected a text, found a {type(cell).__name__}")
    return str(cell)


def _is_string(data: Dataset, column: str) -> bool:
    is_string = getattr(data.features[column], "dtype", "") in ("string", "large_string")
    return is_string and data.data.column(column).null_count == 0


def _holds_text(table: Table, column: str) -> bool:
    """Whether some cell is text that is not a number; lists of words count, so that they are refused by name."""
    return any(
        isinstance(cell, str | list) and not is_empty(cell) and number_in(cell) is None
        for cell in table.columns[column]
    )


def _from_csv(path: str, text: str, kind: str) -> Table:
    csv.field_size_limit(sys.maxsize)
    head = text.partition("\n")[0]
    # Where the comma is the decimal sign, csv files are written with semicolons.
    delimiter = "\t" if kind == ".tsv" else next((sign for sign in ",;\t" if sign in head), ",")
    try:
        return _rows_of_csv(path, text, delimiter, csv.QUOTE_MINIMAL)
    except UserError:
        if delimiter != "\t":
            raise
        return _rows_of_csv(path, text, delimiter, csv.QUOTE_NONE)  # GLUE's tsv files quote nothing


def _rows_of_csv(path: str, text: str, delimiter: str, quoting: int) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    rows, lines = [], []
    try:
        names = [name.strip() for name in next(reader, [])]
        for row in reader:
            if not any(row):
                continue  # an empty line
            if len(row) != len(names):
                raise UserError(
                    f"{path}, line {reader.line_num}: expected {len(names)} columns ({', '.join(names)}), found {len(row)}; "
                    "a text with the separator in it must stand in quotes"
                )
            rows.append(row)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {one_line(error)}") from error
    _check_names(path, names)
    return Table(path, {name: [row[i] for row in rows] for i, name in enumerate(names)}, lines)


def _check_names(path: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path} has more than one column named {twice[0]!r}")


def _from_json(path: str, text: str) -> Table:
    rows, lines = _json_rows(path, text)
    table = Table(path, {"": rows}, lines)
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            place = table.at(number, "").removesuffix(", column ''")
            raise UserError(f"{place}: expected an object with columns by name, found {json.dumps(row)[:40]}")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Table(path, {name: [row.get(name) for row in rows] for name in names}, lines)


def _json_rows(path: str, text: str) -> tuple[list[Any], list[int] | None]:
    """The rows of an array, or of one row a line, then with the numbers of the lines."""
    if text.lstrip().startswith("["):
        try:
            return json.loads(text), None
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {one_line(error)}") from error
    rows, lines = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"{path}, line {number}: expected one JSON object a line: {one_line(error)}") from error
            lines.append(number)
    return rows, lines
