"""The tasks, and their files, that stand among the arguments of another one. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from batchflow.errors import InvalidDependency
from batchflow.protocol.bundle import check_name

if TYPE_CHECKING:
    from batchflow.sessions.records.submission import TaskInput
    from batchflow.sessions.records.tracker import Entry


InputOf = Callable[[Any], "TaskInput | None"]
"""Returns what a handle stands for; None for what is no handle. Raises `InvalidDependency`."""

_SHOWN: Final = 80
"""Characters of a value in an error."""


class TaskMarks:
    """Numbers the tasks and files among the arguments of one task, each once."""

    def __init__(self, input_of: InputOf) -> None:
        self._input_of = input_of
        self._numbers: dict[TaskInput, int] = {}

    @property
    def inputs(self) -> list[TaskInput]:
        """The tasks and their files, in the order of their numbers."""
        return list(self._numbers)

    def __call__(self, value: Any, /) -> int | None:
        """Return the number of a task or a file; None for anything else. Raises `InvalidDependency`."""
        found = self._input_of(value)
        return None if found is None else self._numbers.setdefault(found, len(self._numbers))


def entries_of(after: Any, input_of: InputOf) -> list[Entry]:
    """Return the tasks of `after=`: one, or several. Raises `InvalidDependency` for anything else."""
    if (entry := _task_of(after, input_of)) is not None:
        return [entry]
    if isinstance(after, str | bytes) or not isinstance(after, Iterable):
        raise InvalidDependency(f"after is {after!r:.{_SHOWN}}; a task or a list of tasks is needed")
    found: list[Entry] = []
    for place, value in enumerate(after):
        if (entry := _task_of(value, input_of)) is None:
            shown = f"{value!r:.{_SHOWN}}"
            raise InvalidDependency(f"after[{place}] is {shown}; a task of this session is needed")
        found.append(entry)
    return found


def _task_of(value: Any, input_of: InputOf) -> Entry | None:
    """Return the task that a handle stands for; None for a file of one, and for what is no handle."""
    found = input_of(value)
    return None if found is None or found.file is not None else found.entry


def file_name(name: Any, task_id: str) -> str:
    """Return the name of a file that a task may leave. Raises `InvalidDependency` for any other."""
    try:
        return check_name(name)
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidDependency(f"task {task_id} can have no file {name!r:.80}: {error}") from error
