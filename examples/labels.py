"""What the label columns of a classification mean: classes, several of them at once, or numbers; and their numbers."""

from __future__ import annotations

import ast
import difflib
import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PretrainedConfig

from shared import UserError
from tables import Table, is_empty, number_in

logger = logging.getLogger("shared")

REGRESSION, SINGLE, MULTI = "regression", "single_label_classification", "multi_label_classification"
PROBLEMS = (REGRESSION, SINGLE, MULTI)
_TRUE, _FALSE = {"1", "true", "yes"}, {"0", "false", "no"}


@dataclass(frozen=True)
class Labels:
    """The kind of problem, `names` of the classes by their numbers (none of a regression), and the columns to read.

    Several columns are named after their classes. `vectors`: a row's classes are told by a list of 0 and 1, one for each
    class, instead of by their names; such classes have no names but transformers' LABEL_0, LABEL_1, ...
    """

    problem: str
    names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ("label",)
    vectors: bool = False

    @property
    def outputs(self) -> int:
        """How many numbers a model gives for them."""
        return 1 if self.problem == REGRESSION else len(self.names)

    def describe(self) -> str:
        """For the log."""
        if self.problem == REGRESSION:
            return "numbers with fractions, a regression"
        kind = "several a row, of" if self.problem == MULTI else "one a row, of"
        return f"{kind} {', '.join(self.names[:20])}" + (", ..." if len(self.names) > 20 else "")

    def spelled(self, guess: Any) -> str:
        """A prediction for people: the name of a class, a list of names in JSON, or a value."""
        if self.problem == REGRESSION:
            return f"{guess:.3f}"
        if self.problem == SINGLE:
            return self.names[guess]
        return json.dumps([name for name, given in zip(self.names, guess, strict=True) if given], ensure_ascii=False)

    def ordered_as(self, trained: dict[str, int]) -> Labels:
        """Numbered as a model numbers them, if it was trained with the same classes."""
        order = order_of_labels(trained, list(self.names))
        names = tuple(sorted(order, key=lambda name: order[name]))
        return replace(self, names=names, columns=names if len(self.columns) > 1 else self.columns)

    def numbers(self, table: Table) -> list[Any]:
        """What the loss wants for each row: a number of a class, a list of 0.0 and 1.0 for all of them, or a value.

        Raises:
            UserError: a column is missing, or a cell is empty or none of the classes; the message says where.
        """
        for column in self.columns:
            table.require(column, "--label_column_names")
        if len(self.columns) > 1:
            parts = [[_flag(cell, table, row, c) for row, cell in enumerate(table.columns[c])] for c in self.columns]
            return [list(row) for row in zip(*parts, strict=True)]
        (column,) = self.columns
        order = {name: number for number, name in enumerate(self.names)}
        read = {REGRESSION: _value, SINGLE: _class, MULTI: _vector if self.vectors else _several}[self.problem]
        return [read(cell, table, row, column, order) for row, cell in enumerate(table.columns[column])]


def labels_in(table: Table, columns: Sequence[str], problem: str | None = None) -> Labels:
    """The labels of the training data. Unless `problem` is given: a column for each class or lists are several labels,
    numbers some of which have a fraction are a regression, anything else are classes.

    Raises:
        UserError: a column is missing, a cell is empty or of no use, there is one class only, or they are not the `problem`.
    """
    columns = tuple(columns)
    for column in columns:
        table.require(column, "--label_column_names")
    if len(columns) > 1:
        if problem not in (None, MULTI):
            raise UserError(f"--problem_type {problem} needs one label column, got {', '.join(columns)}")
        return Labels(MULTI, columns, columns)
    (column,) = columns
    cells = table.columns[column]
    empty = next((row for row, cell in enumerate(cells) if is_empty(cell)), None)
    if empty is not None:
        raise UserError(f"{table.at(empty, column)}: no label; give it one, or leave the row out")
    if problem == MULTI or (problem is None and all(_list_in(cell) is not None for cell in cells)):
        return _several_in(table, column)
    if problem == REGRESSION or (problem is None and column not in table.names and _are_fractions(cells)):
        return Labels(REGRESSION, (), columns)
    names = table.names.get(column) or sorted_names({_name(cell, table, row, column) for row, cell in enumerate(cells)})
    if len(names) == 1:
        raise UserError(f"{table.source}, column '{column}': every label is {names[0]!r}: one class, nothing to learn")
    return Labels(SINGLE, tuple(names), columns)


def labels_of(config: PretrainedConfig, columns: Sequence[str]) -> Labels:
    """The labels that a model was trained on: what counts where there is no training data.

    Raises:
        UserError: there is a column for each class, but not for the model's.
    """
    names = tuple(config.id2label[number] for number in range(config.num_labels))
    if len(columns) > 1 and set(columns) != set(names):
        raise UserError(
            f"--label_column_names must name the model's classes, {', '.join(names)}; got {', '.join(columns)}"
        )
    if config.problem_type == MULTI or len(columns) > 1:
        return Labels(MULTI, names, names if len(columns) > 1 else tuple(columns), vectors=not _are_real(names))
    return Labels(REGRESSION if len(names) == 1 else SINGLE, () if len(names) == 1 else names, tuple(columns))


def order_of_labels(trained: dict[str, int], labels: list[str]) -> dict[str, int]:
    """Label -> its number: a model's own numbering if it was trained with the same labels, else theirs."""
    theirs = {name.lower(): number for name, number in trained.items()}
    if sorted(theirs) == sorted(label.lower() for label in labels):
        return {label: theirs[label.lower()] for label in labels}
    return {label: number for number, label in enumerate(labels)}


def warn_of_other_classes(trained: dict[str, int], labels: Sequence[str]) -> None:
    """Say that a model knows other classes than those it is to be trained on: its head goes on from theirs."""
    if (
        _are_real(trained)
        and len(trained) == len(labels)
        and {n.lower() for n in trained} != {n.lower() for n in labels}
    ):
        logger.warning(
            f"The model was trained on the classes {', '.join(trained)}; the data has {', '.join(labels)}, which take their "
            "places in this order."
        )


def _are_real(names: Iterable[str]) -> bool:
    """Whether classes have names of their own, and not those that transformers gives to classes without."""
    return not all(re.fullmatch(r"LABEL_\d+", name) for name in names)


def sorted_names(names: set[str]) -> list[str]:
    """In alphabetical order, or as numbers if they all are."""
    numbers = {name: number_in(name) for name in names}
    if None in numbers.values():
        return sorted(names)
    return sorted(names, key=lambda name: (numbers[name], name))


def _are_fractions(cells: Sequence[Any]) -> bool:
    numbers = [number_in(cell) for cell in cells]
    return None not in numbers and any(number != int(number) for number in numbers)  # type: ignore[arg-type]


def _name(cell: Any, table: Table, row: int, column: str) -> str:
    """What a cell calls its class; 1, 1.0 and "1.0" are one class."""
    if isinstance(cell, list | dict):
        kind = "a list" if isinstance(cell, list) else "an object"
        raise UserError(f"{table.at(row, column)}: expected the name or number of a class, found {kind}: {cell}")
    if isinstance(cell, float) and cell == int(cell):
        return str(int(cell))
    name = str(cell).strip()
    return name.partition(".")[0] if re.fullmatch(r"[+-]?\d+\.0*", name) else name


def _class(cell: Any, table: Table, row: int, column: str, order: dict[str, int]) -> int:
    if is_empty(cell):
        raise UserError(f"{table.at(row, column)}: no label; give it one, or leave the row out")
    if column in table.names and isinstance(cell, int):
        if not 0 <= cell < len(table.names[column]):
            raise UserError(
                f"{table.at(row, column)}: the label is hidden ({cell}), so it cannot be learnt or compared"
            )
        cell = table.names[column][cell]
    name = _name(cell, table, row, column)
    if name not in order:
        near = difflib.get_close_matches(name.lower(), [known.lower() for known in order], n=1, cutoff=0.9)
        hint = [f"; did you mean {known!r}?" for known in order if known.lower() in near]
        raise UserError(
            f"{table.at(row, column)}: the label {name!r} is none of those trained on: {', '.join(order)}"
            + "".join(hint[:1])
        )
    return order[name]


def _value(cell: Any, table: Table, row: int, column: str, order: dict[str, int]) -> float:
    number = None if is_empty(cell) else number_in(cell)
    if number is None:
        found = "nothing" if is_empty(cell) else repr(cell)
        raise UserError(f"{table.at(row, column)}: expected a number, as the labels are a regression's, found {found}")
    return number


def _flag(cell: Any, table: Table, row: int, column: str) -> float:
    word = "" if is_empty(cell) else _name(cell, table, row, column).lower()
    if word not in _TRUE | _FALSE:
        raise UserError(
            f"{table.at(row, column)}: expected 0 or 1, as there is a column for each class, found {cell!r}"
        )
    return float(word in _TRUE)


def _list_in(cell: Any) -> list[Any] | None:
    """The list that a cell holds, or spells as pandas writes one into a csv file."""
    if isinstance(cell, str) and cell.strip().startswith("[") and cell.strip().endswith("]"):
        try:
            cell = ast.literal_eval(cell.strip())
        except (ValueError, SyntaxError):
            return None
    return list(cell) if isinstance(cell, list | tuple) else None


def _several_in(table: Table, column: str) -> Labels:
    lists = [_checked_list(cell, table, row, column) for row, cell in enumerate(table.columns[column])]
    if column in table.names:
        return Labels(MULTI, tuple(table.names[column]), (column,))
    length = len(lists[0])
    if length > 1 and all(len(each) == length and all(item in (0, 1) for item in each) for each in lists):
        return Labels(MULTI, tuple(f"LABEL_{number}" for number in range(length)), (column,), vectors=True)
    names = {_name(item, table, row, column) for row, each in enumerate(lists) for item in each}
    if not names:
        raise UserError(f"{table.source}, column '{column}': every list of labels is empty, nothing to learn")
    if len(names) == 1 and all(lists):
        raise UserError(f"{table.source}, column '{column}': every row has the label {min(names)!r}: nothing to learn")
    return Labels(MULTI, tuple(sorted_names(names)), (column,))


def _checked_list(cell: Any, table: Table, row: int, column: str) -> list[Any]:
    items = _list_in(cell)
    if items is None:
        raise UserError(f"{table.at(row, column)}: expected a list of labels, found {cell!r}")
    return items


def _several(cell: Any, table: Table, row: int, column: str, order: dict[str, int]) -> list[float]:
    items = _checked_list(cell, table, row, column)
    chosen = {_class(item, table, row, column, order) for item in items}
    return [float(number in chosen) for number in range(len(order))]


def _vector(cell: Any, table: Table, row: int, column: str, order: dict[str, int]) -> list[float]:
    items = _checked_list(cell, table, row, column)
    if len(items) != len(order) or not all(item in (0, 1) for item in items):
        raise UserError(
            f"{table.at(row, column)}: expected {len(order)} numbers 0 or 1, one for each class, found {cell}"
        )
    return [float(item) for item in items]
