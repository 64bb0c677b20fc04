"""Items of a run, and tables of text: what separates the columns of one, and results as one (CSV)."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import field
from typing import Any, Final

from batchflow.errors import ConfigurationError
from batchflow.support.frozen import frozen


@frozen
class Item:
    """One task to be: what it runs, and what with."""

    command: str
    arguments: list[Any]
    after: list[int] = field(default_factory=list)
    """The items that it waits for, by their numbers; they stand before it."""
    label: str | None = None
    """The name that a workflow gives it."""
    expires: float | None = None
    """Seconds from its submit after which it does not begin; None: as the run says."""

    @classmethod
    def of(cls, command: str, value: Any) -> Item:
        """Make an item. A list is the arguments, any other value is the one argument."""
        return cls(command, value if isinstance(value, list) else [value])


SEPARATORS: Final = {",": "comma", ";": "semicolon", "\t": "tab"}
"""What may separate columns, and its name."""
_SEEN: Final = 200
"""Rows by which the separator is found."""
_LINE_END: Final = "\r\n"
"""The writer puts cells that hold one of these in quotes."""
_RESULT_COLUMNS: Final = (
    "status",
    "value",
    "error",
    "kind",
    "attempt",
    "node",
    "seconds",
    "stdout",
    "stderr",
    "files",
)


def separator_of(path: str, text: str) -> str:
    """Return the character that separates the columns of a table.

    Raises `ConfigurationError` when several may.
    """
    fitting = [separator for separator in SEPARATORS if _columns(text, separator) > 1]
    if not fitting and _first_width(text, ",") == 1:
        fitting = [separator for separator in SEPARATORS if _first_width(text, separator) > 1]
    if len(fitting) > 1:
        names = " or a ".join(SEPARATORS[separator] for separator in fitting)
        raise ConfigurationError(f"{path}: a {names} may separate the columns; say which: --delimiter ';'")
    return fitting[0] if fitting else ","


def rows_of(path: str, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Return the rows that are not empty, each with the number of its last line.

    Raises `ConfigurationError`, naming file and line.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise ConfigurationError(f"{path}:{reader.line_num}: not CSV: {error}") from error


def _columns(text: str, separator: str) -> int:
    """Return the number of columns by which the first rows agree; 0 when they do not."""
    try:
        widths = {len(cells) for _, cells in itertools.islice(rows_of("", text, separator), _SEEN)}
    except ConfigurationError:
        return 0
    return widths.pop() if len(widths) == 1 else 0


def _first_width(text: str, separator: str) -> int:
    try:
        return len(next(rows_of("", text, separator), (0, []))[1])
    except ConfigurationError:
        return 0


class ResultTable:
    """The results of a run as rows of CSV: what each task got, and what became of it.

    Inputs that are objects have a column for each of their names, other inputs are JSON in one column. Text
    stands as it is, numbers as digits, anything else as JSON.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        items = list(items)
        self._names: list[str] | None = None
        if items and all(len(item.arguments) == 1 and isinstance(item.arguments[0], dict) for item in items):
            self._names = list(dict.fromkeys(name for item in items for name in item.arguments[0]))
        self._inputs = [item.arguments for item in items]

    @property
    def head(self) -> str:
        """The line of the columns' names."""
        own = ("index", "command", *_RESULT_COLUMNS)
        inputs = ["arguments"] if self._names is None else self._names
        shown = [f"input.{name}" if name in own else name for name in inputs]
        return _line(["index", "command", *shown, *_RESULT_COLUMNS])

    def row(self, document: dict[str, Any]) -> str:
        """Return the line of a result."""
        arguments = self._inputs[document["index"]]
        names = self._names
        inputs = [arguments] if names is None else [arguments[0].get(name) for name in names]
        rest = [document.get(name) for name in _RESULT_COLUMNS]
        return _line([document["index"], document.get("command"), *inputs, *rest])


def _line(cells: Iterable[Any]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator=_LINE_END).writerow([_cell(cell) for cell in cells])
    return out.getvalue().removesuffix(_LINE_END)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
