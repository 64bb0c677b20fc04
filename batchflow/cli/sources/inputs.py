"""What the tasks of a run get, from wherever it is written. All of it is read and checked before any is sent.

An input is an item: the command, and its arguments. As everywhere in batchflow a list is the arguments, and
anything else is the one argument. Text from the command line and from a CSV file is read as JSON where it is
JSON (`3`, `true`, `[1, 2]`), and is text as it stands where it is not.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from batchflow.cli.sources.tables import SEPARATORS, Item, rows_of, separator_of
from batchflow.config.loader import nearest, unreadable
from batchflow.errors import ConfigurationError
from batchflow.support.frozen import frozen
from batchflow.support.progress_report import counted

_STDIN: Final = "-"


def value_of(text: str) -> Any:
    """Read JSON where it is JSON, else the text itself."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError:
        return text


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def from_texts(command: str, texts: Iterable[str], as_text: bool) -> list[Item]:
    """Return the items that the command line itself names."""
    return [Item.of(command, text if as_text else value_of(text)) for text in texts]


def from_csv(
    command: str,
    path: str,
    as_text: bool,
    header: bool,
    separator: str | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> list[Item]:
    """Read a CSV file, one task a row. Raises `ConfigurationError`, naming file and line.

    With a header a task's one argument is an object by column names, else its arguments are the cells.
    `separator`: of the columns; None: the one that the file is seen to have, which `say` gets if it is no
    comma.
    """
    read = str if as_text else value_of
    items = []
    with _opened(path) as file:
        text = file.read()
    if separator is None:
        separator = separator_of(path, text)
        if separator != ",":
            say(f"{path}: a {SEPARATORS[separator]} separates its columns (else: --delimiter ,)")
    names: list[str] | None = None
    width = 0
    for line, cells in rows_of(path, text, separator):
        if not width:
            width = len(cells)
            if header:
                names = _header(path, cells)
                continue
        if len(cells) != width:
            raise ConfigurationError(f"{path}:{line}: {counted(len(cells), 'column')}, {width} are expected")
        values = [read(cell) for cell in cells]
        items.append(Item(command, values if names is None else [dict(zip(names, values, strict=True))]))
    return items


def _header(path: str, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if not all(names) or len({*names}) < len(names):
        raise ConfigurationError(
            f"{path}:1: the header needs a name for each column, each once: {names}; is it one? --no-header"
        )
    return names


def from_json_lines(command: str, path: str) -> list[Item]:
    """Read a file of JSON lines, one task a line. Raises `ConfigurationError`, naming file and line."""
    items = []
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line, parse_constant=_no_constant)
            except ValueError as error:
                raise ConfigurationError(f"{path}:{number}: not JSON: {error}") from error
            items.append(Item.of(command, value))
    return items


@contextmanager
def _opened(path: str) -> Iterator[IO[str]]:
    try:
        if path == _STDIN:
            yield sys.stdin
        else:
            with open(path, encoding="utf-8-sig", newline="") as file:
                yield file
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {unreadable(error)}") from error


# ---- the original's manifest

_KEYS: Final = (
    "TASK_MODULES",
    "TASK_MODULES_DIRECTORY",
    "TASK_ARGS",
    "TASK_OUTPUT_CONTAINER",
    "JOB_MANIFEST",
)
_ENTRY: Final = ("TASK_MODULE", "TASK_INPUT")


@frozen
class Manifest:
    """A task.json of azure_realtime_batch."""

    items: list[Item]
    folder: Path
    """Where its files are: what the tasks run with."""


def from_manifest(path: str) -> Manifest:
    """Read a manifest. Raises `ConfigurationError` for a malformed one, and for a missing file in it."""
    document = _manifest_document(path)
    folder = Path(path).parent / _text(path, document, "TASK_MODULES_DIRECTORY")
    entries = document["JOB_MANIFEST"]
    if not isinstance(entries, list) or not entries:
        raise ConfigurationError(f"{path}: JOB_MANIFEST is a list of tasks, with at least one")
    default = _text(path, document, "TASK_ARGS")
    items = [_manifest_item(path, number, entry, default) for number, entry in enumerate(entries, 1)]
    modules = document.get("TASK_MODULES", [])
    if not isinstance(modules, list):
        raise ConfigurationError(f"{path}: TASK_MODULES is a list of file names")
    _check_files(path, folder, [*modules, *_named_by(items)])
    return Manifest(items, folder)


def _manifest_document(path: str) -> dict[str, Any]:
    with _opened(path) as file:
        try:
            document = json.load(file)
        except ValueError as error:
            raise ConfigurationError(f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict) or "JOB_MANIFEST" not in document:
        raise ConfigurationError(f"{path}: a task.json is expected: an object with JOB_MANIFEST")
    for key in document:
        if key not in _KEYS:
            raise ConfigurationError(f"{path}: unknown key {key!r}{nearest(key, _KEYS)}")
    return document


def _text(path: str, document: dict[str, Any], key: str) -> str:
    value = document.get(key, "")
    if not isinstance(value, str):
        raise ConfigurationError(f"{path}: {key} must be a string, not {type(value).__name__}")
    return value


def _manifest_item(path: str, number: int, entry: Any, default: str) -> Item:
    where = f"{path}: task {number} of JOB_MANIFEST"
    if not isinstance(entry, dict) or not isinstance(entry.get("TASK_MODULE"), str):
        raise ConfigurationError(f"{where}: an object with TASK_MODULE, a file name, is expected")
    for key in entry:
        if key not in _ENTRY:
            raise ConfigurationError(f"{where}: unknown key {key!r}{nearest(key, _ENTRY)}")
    line = entry.get("TASK_INPUT", default)
    if not isinstance(line, str):
        raise ConfigurationError(f"{where}: TASK_INPUT must be a string, not {type(line).__name__}")
    try:
        return Item(entry["TASK_MODULE"], list(shlex.split(line)))
    except ValueError as error:
        raise ConfigurationError(f"{where}: TASK_INPUT {line!r} cannot be split: {error}") from error


def _named_by(items: list[Item]) -> Iterator[str]:
    """Return the tasks' own files, and the jars that they hand to Java."""
    for item in items:
        yield item.command
        for word, after in zip(item.arguments, item.arguments[1:], strict=False):
            if word == "-jar":
                yield after


def _check_files(path: str, folder: Path, names: list[Any]) -> None:
    missing = sorted({str(name) for name in names if not (folder / str(name)).is_file()})
    if missing:
        raise ConfigurationError(f"{path}: it names files that are not in {folder}/: {', '.join(missing)}")
