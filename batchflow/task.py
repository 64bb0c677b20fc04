"""The handle that `submit` returns."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

from batchflow.errors import InvalidDependency
from batchflow.model import Result, Status, T_co
from batchflow.sessions.records.submission import TaskInput
from batchflow.sessions.workflows.inputs import file_name

if TYPE_CHECKING:
    from batchflow.sessions.cancellation import Cancellations
    from batchflow.sessions.records.outcomes import Outcomes
    from batchflow.sessions.records.tracker import Entry


class Task(Generic[T_co]):
    """A submitted task. ``await task`` gives its value or raises its `TaskError`, any number of times.

    Its value is of the type that the function returns; of a file's task, of any. Cancelling a coroutine that
    awaits it does not cancel the task; `cancel` does.
    """

    __slots__ = ("_cancellations", "_entry", "_outcomes")

    def __init__(self, entry: Entry, outcomes: Outcomes, cancellations: Cancellations) -> None:
        self._entry = entry
        self._outcomes = outcomes
        self._cancellations = cancellations

    @property
    def id(self) -> str:
        """The user's label; it may repeat."""
        return self._entry.task_id

    @property
    def task_id(self) -> str:
        """The user's label, as the result has it; it may repeat."""
        return self._entry.task_id

    @property
    def done(self) -> bool:
        """Whether it has its outcome."""
        return self._entry.done

    @property
    def status(self) -> Status:
        return self._entry.status

    @property
    def node(self) -> str | None:
        """The host name of the node that runs it, as the last heartbeat says, or that ran it."""
        entry = self._entry
        if entry.done:
            return entry.read().host
        return None if entry.running_on is None else entry.running_on.host

    @property
    def started_at(self) -> float | None:
        """When it began, in seconds since the epoch by the node's clock; None while that is not known."""
        entry = self._entry
        if entry.done:
            return entry.read().started_at
        return None if entry.running_on is None else entry.running_on.since

    @property
    def index(self) -> int:
        """Its place in the session, from 0."""
        return self._entry.index

    async def accepted(self) -> None:
        """Return when the broker has the task.

        Raises its `TaskError` when it never will (`SubmitFailed`, `TaskCancelled`), `SessionClosed` when the
        session ends first, `BrokerError` when the broker has been away for `session.patience` seconds: it is
        tried again all the same. Safe to cancel.
        """
        await self._outcomes.until_accepted(self._entry)

    async def outcome(self) -> Result[T_co]:
        """Return the task's result, also of a failure; never raises for the task's own failure.

        Raises `SessionClosed` when the session ends first, `NoAgents` when no agent lives, another
        `ServiceError` when a service has been away for `session.patience` seconds. The task lives on, and can
        be awaited again. Safe to cancel.
        """
        await self._outcomes.until_done(self._entry)
        return self._outcomes.result(self._entry)

    def __await__(self) -> Generator[object, None, T_co]:
        return self._value().__await__()

    async def _value(self) -> T_co:
        return (await self.outcome()).unwrap()

    def file(self, name: str) -> TaskFile:
        """Return a file that the task leaves in its output folder, to be an argument of another task.

        That one gets its path, in its working directory. `name`: relative to the output folder. Raises
        `InvalidDependency` for one that leaves the folder.
        """
        return TaskFile(self, file_name(name, self.id))

    async def cancel(self, *, inputs: bool = False) -> None:
        """Ask for its end; idempotent. Returns when the request is written where every agent looks.

        Not started a second later, it never starts; running, it is killed. Its outcome is `TaskCancelled`,
        unless it ends by itself before. Tasks that wait for it are cancelled with it. `inputs`: those that it
        waits for are cancelled as well, unless others wait for them, too.
        """
        await self._cancellations.cancel([self._entry], inputs=inputs)

    def __repr__(self) -> str:
        return f"<Task {self.id!r} {self._entry.command!r} {self.status.value}>"

    def _repr_html_(self) -> str:
        from batchflow.display.html import task_card

        return task_card(self._entry, self.node, self.started_at)


@dataclass(frozen=True, slots=True)
class TaskFile:
    """A file that a task leaves, as an argument of another task: `Task.file` makes it."""

    task: Task[Any]
    name: str
    """Relative to the task's output folder."""


def input_of(value: Any, outcomes: Outcomes) -> TaskInput | None:
    """Return what a handle stands for, a task's value or a file of it; None for what is no handle.

    `outcomes`: of the session in which it is to be waited for. Raises `InvalidDependency` for the handle of
    another session.
    """
    task = value.task if isinstance(value, TaskFile) else value
    if not isinstance(task, Task):
        return None
    if task._outcomes is not outcomes:
        raise InvalidDependency(
            f"task {task.id} ({task._entry.command}) is of session {task._entry.job}/{task._entry.client}"
            f"{', which is closed' if task._outcomes.closed else ''}: a task can wait for tasks of its own "
            "session alone; await that one, and pass its value"
        )
    return TaskInput(task._entry, None if task is value else value.name)
