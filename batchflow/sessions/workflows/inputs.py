"""The tasks that stand among the arguments of another one, and what takes their places. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from batchflow.errors import InvalidDependency

if TYPE_CHECKING:
    from batchflow.sessions.records.tracker import Entry

EntryOf = Callable[[Any], "Entry | None"]
"""Returns the task that a handle stands for; None for what is no handle. Raises `InvalidDependency`."""

_SHOWN: Final = 80
"""Characters of a value in an error."""


class TaskMarks:
    """Numbers the tasks among the arguments of one task, each once."""

    def __init__(self, entry_of: EntryOf) -> None:
        self._entry_of = entry_of
        self._numbers: dict[Entry, int] = {}

    @property
    def entries(self) -> list[Entry]:
        """The tasks, in the order of their numbers."""
        return list(self._numbers)

    def __call__(self, value: Any, /) -> int | None:
        """Return the number of a task; None for anything else. Raises `InvalidDependency`."""
        entry = self._entry_of(value)
        return None if entry is None else self._numbers.setdefault(entry, len(self._numbers))


def entries_of(after: Any, entry_of: EntryOf) -> list[Entry]:
    """Return the tasks of `after=`: one, or several. Raises `InvalidDependency` for anything else."""
    if (entry := entry_of(after)) is not None:
        return [entry]
    if isinstance(after, str | bytes) or not isinstance(after, Iterable):
        raise InvalidDependency(f"after is {after!r:.{_SHOWN}}; a task or a list of tasks is needed")
    found: list[Entry] = []
    for place, value in enumerate(after):
        if (entry := entry_of(value)) is None:
            shown = f"{value!r:.{_SHOWN}}"
            raise InvalidDependency(f"after[{place}] is {shown}; a task of this session is needed")
        found.append(entry)
    return found
