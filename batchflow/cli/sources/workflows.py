"""Workflows of `batchflow run`: tasks with names that wait for each other, as TOML or as JSON lines.

A task has `command`, and optionally `id`, `args`, `after` and `expires` (seconds). In `args` the object
`{"$task": "id"}` stands for the value of that task, which is waited for as well. The order is free.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from batchflow.cli.sources.tables import Item
from batchflow.config.loader import nearest, unreadable
from batchflow.errors import ConfigurationError
from batchflow.support.frozen import frozen

_KEYS: Final = ("id", "command", "args", "after", "expires")
_FILE_KEYS: Final = ("files", "task")
_VALUE_OF: Final = "$task"
"""The one key of an object that stands for the value of a task."""


@frozen
class Workflow:
    """What a file of tasks says."""

    items: list[Item]
    """Each after those that it waits for."""
    files: list[str]
    """What the tasks run with; empty: the file does not say."""


def from_workflow(path: str) -> Workflow:
    """Read a workflow: TOML where the name ends so, else JSON lines. Raises `ConfigurationError`."""
    try:
        text = Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {unreadable(error)}") from error
    files: list[str] = []
    if path.endswith(".toml"):
        entries, files = _toml(path, text)
    else:
        entries = [
            (f"{path}:{number}", _json(f"{path}:{number}", line))
            for number, line in enumerate(text.splitlines(), 1)
            if line.strip()
        ]
    return Workflow(_ordered(path, [_entry(where, entry) for where, entry in entries]), files)


def _toml(path: str, text: str) -> tuple[list[tuple[str, Any]], list[str]]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from error
    _check_keys(path, document, _FILE_KEYS)
    tasks, files = document.get("task", []), document.get("files", [])
    if not isinstance(tasks, list):
        raise ConfigurationError(f"{path}: tasks are written as [[task]]")
    if not isinstance(files, list) or not all(isinstance(each, str) for each in files):
        raise ConfigurationError(f"{path}: files is a list of paths, relative to this file")
    entries = [(f"{path}: task {number}", entry) for number, entry in enumerate(tasks, 1)]
    return entries, [str(Path(path).parent / each) for each in files]


def _json(where: str, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ConfigurationError(f"{where}: not JSON: {error}") from error


def _check_keys(where: str, found: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in found:
        if key not in known:
            raise ConfigurationError(f"{where}: unknown key {key!r}{nearest(key, known)}")


@frozen
class _Entry:
    where: str
    label: str | None
    command: str
    arguments: list[Any]
    after: list[str]
    """The tasks that it waits for, those whose values it takes included."""
    expires: float | None = None


def _entry(where: str, found: Any) -> _Entry:
    if not isinstance(found, dict) or not isinstance(found.get("command"), str):
        raise ConfigurationError(f"{where}: a task has a command, the name of a file")
    _check_keys(where, found, _KEYS)
    label, after = found.get("id"), found.get("after", [])
    after = [after] if isinstance(after, str) else after
    if label is not None and not isinstance(label, str):
        raise ConfigurationError(f"{where}: id is {label!r}; a text is needed")
    if not isinstance(after, list) or not all(isinstance(each, str) for each in after):
        raise ConfigurationError(
            f"{where}: after is {after!r}; the id of a task, or a list of them, is needed"
        )
    arguments = Item.of(found["command"], found.get("args", [])).arguments
    named: list[str] = []
    with_values(arguments, lambda label: named.append(label))
    if not all(isinstance(each, str) for each in named):
        raise ConfigurationError(f"{where}: {_VALUE_OF} has the id of a task, a text")
    expires = found.get("expires")
    if expires is not None and not (type(expires) in (int, float) and 0 < expires < math.inf):
        raise ConfigurationError(f"{where}: expires is {expires!r}; seconds above 0 are needed")
    return _Entry(where, label, found["command"], arguments, list(dict.fromkeys([*after, *named])), expires)


def with_values(arguments: Any, value_of: Callable[[Any], Any]) -> Any:
    """Return arguments in which values have taken the places of the tasks that are named there."""
    if isinstance(arguments, list):
        return [with_values(each, value_of) for each in arguments]
    if not isinstance(arguments, dict):
        return arguments
    if [*arguments] == [_VALUE_OF]:
        return value_of(arguments[_VALUE_OF])
    return {key: with_values(each, value_of) for key, each in arguments.items()}


def _ordered(path: str, entries: list[_Entry]) -> list[Item]:
    """Return the items by their distance from the tasks that wait for none, then as they are written."""
    labels: dict[str, _Entry] = {}
    for entry in entries:
        if entry.label is not None and labels.setdefault(entry.label, entry) is not entry:
            first = labels[entry.label].where
            raise ConfigurationError(f"{entry.where}: the id {entry.label!r} is that of {first}, too")
    for entry in entries:
        for label in entry.after:
            if label not in labels:
                hint = nearest(label, labels)
                raise ConfigurationError(f"{entry.where}: it waits for {label!r}, which is no task{hint}")
    line: list[_Entry] = []
    left = list(entries)
    done: set[str] = set()
    while left:
        ready = [entry for entry in left if done.issuperset(entry.after)]
        if not ready:
            names = ", ".join(str(entry.label) for entry in left if entry.label is not None)
            raise ConfigurationError(f"{path}: these tasks wait for each other in a circle: {names}")
        line += ready
        done.update(entry.label for entry in ready if entry.label is not None)
        chosen = set(map(id, ready))
        left = [entry for entry in left if id(entry) not in chosen]
    numbers = {entry.label: number for number, entry in enumerate(line)}
    return [
        Item(
            entry.command,
            with_values(entry.arguments, lambda label: {_VALUE_OF: numbers[label]}),
            [numbers[label] for label in entry.after],
            entry.label,
            entry.expires,
        )
        for entry in line
    ]


def part_of(items: list[Item], chosen: list[int], values: Mapping[int, Any]) -> list[Item]:
    """Return some items as a workflow of their own.

    `values`: of the tasks that succeeded, by their numbers. They take the places of these tasks.
    """
    numbers = {number: place for place, number in enumerate(chosen)}

    def value_of(number: int) -> Any:
        return {_VALUE_OF: numbers[number]} if number in numbers else values.get(number)

    def part(item: Item) -> Item:
        arguments = with_values(item.arguments, value_of) if item.after else item.arguments
        after = [numbers[each] for each in item.after if each in numbers]
        return Item(item.command, arguments, after, item.label, item.expires)

    return [part(items[number]) for number in chosen]


def is_workflow(items: Iterable[Item]) -> bool:
    """Return whether any of the items waits for another one."""
    return any(item.after for item in items)
