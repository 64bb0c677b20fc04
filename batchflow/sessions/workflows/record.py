"""What a session remembers of its workflow, to draw it: labels, states, and what waits for what. Pure.

Values are not kept: a task that has ended leaves its label, its command and its status.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from batchflow.display.workflow import WorkflowNode
from batchflow.model import Status

if TYPE_CHECKING:
    from batchflow.sessions.records.tracker import Entry

MOST: Final = 1_000
"""Tasks that are remembered. The oldest are forgotten first."""


@dataclass(slots=True, eq=False)
class _Remembered:
    task_id: str
    command: str
    inputs: tuple[str, ...]
    """The uids of what it waits for."""
    entry: Entry | None
    """None once it has ended."""
    status: Status
    """How it ended; until then the entry tells."""


class WorkflowRecord:
    """The newest tasks of a session that wait or waited for others, and those that they wait for."""

    def __init__(self) -> None:
        self._tasks: dict[str, _Remembered] = {}
        """By uid, in the order in which they were noted."""
        self.forgotten: int = 0
        """Tasks that are not remembered any more."""

    def add(self, entry: Entry, inputs: Iterable[Entry]) -> None:
        """Note a task that waits for others, and these."""
        uids = []
        for each in inputs:
            uids.append(each.uid)
            if each.uid not in self._tasks:
                self._note(each, ())
        self._note(entry, tuple(uids))

    def ended(self, entry: Entry) -> None:
        """Note that a task has its outcome."""
        if (known := self._tasks.get(entry.uid)) is not None:
            known.entry, known.status = None, entry.status

    def nodes(self) -> list[WorkflowNode]:
        """Return the tasks, each after those that it waits for."""
        numbers = {uid: number for number, uid in enumerate(self._tasks)}
        return [
            WorkflowNode(
                task.task_id,
                task.command,
                (task.status if task.entry is None else task.entry.status).value,
                # one that was forgotten and came again may stand behind
                tuple(numbers[uid] for uid in task.inputs if numbers.get(uid, number) < number),
            )
            for number, task in enumerate(self._tasks.values())
        ]

    def around(self, uid: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Return uid and label of the tasks that one waits or waited for, and of those that wait for it."""
        known = self._tasks.get(uid)
        inputs = () if known is None else known.inputs
        consumers = [(other, task.task_id) for other, task in self._tasks.items() if uid in task.inputs]
        return [(each, self._tasks[each].task_id) for each in inputs if each in self._tasks], consumers

    def _note(self, entry: Entry, inputs: tuple[str, ...]) -> None:
        live = None if entry.done else entry
        self._tasks[entry.uid] = _Remembered(entry.task_id, entry.command, inputs, live, entry.status)
        if len(self._tasks) > MOST:
            del self._tasks[next(iter(self._tasks))]
            self.forgotten += 1
