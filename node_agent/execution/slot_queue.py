"""The tasks that a slot was given, in the order in which they run.

This is the agent's only record of them beside the scheduler's, and what the Python worker holds of them is
told by its permits: a task that was sent to the worker counts as begun until the worker gives it back.

A task that takes files of other tasks is sent alone, because they are in the working directory for it alone.

No task begins after its `start_by`, because its cancellation may have been missed: agent, worker or node may
have stood still. The worker looks at it as well, for it begins what it was sent without asking.

Invariants: the first `_begun` tasks have begun, or are in the worker; none of the others has. While a pack
is with the worker, what is added behind it is sent on at once. All tasks of a pack may share a process.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from batchflow.errors import ConfigurationError
from node_agent.execution import commands, outcomes
from node_agent.execution.outcomes import Execution, Outcome

if TYPE_CHECKING:
    from pathlib import Path

    from batchflow.protocol.bundle import Bundle
    from batchflow.protocol.wire import TaskItem
    from node_agent.bundles.workspace import Place
    from node_agent.execution.python_worker import PythonWorker
    from node_agent.execution.warm_workers import Key


class SlotGone(OSError):
    """The folder of the slot was gone, or the slot was closed, after a task had run."""


class SlotProtocol(Protocol):
    """What the loop of a slot needs of it. The slot runs one task at a time."""

    async def prepare(self, bundle: Bundle, files: Path) -> Place:
        """Make the working directory of the bundle's tasks. Raises `ConfigurationError`."""

    def resolve(
        self, execution: Execution, place: Place
    ) -> commands.Action | commands.RunProgram | commands.Refusal:
        """Return how the task runs."""

    async def launch(self, execution: Execution, argv: Sequence[str], place: Place) -> Outcome:
        """Run a program as the task."""

    async def worker(self, place: Place, execution: Execution) -> PythonWorker:
        """Return the Python worker for a task and those of its session, ready for tasks of this place."""

    def room(self, worker: PythonWorker) -> int:
        """Return how many tasks the worker may be sent before it is replaced."""

    def dispatch(
        self, worker: PythonWorker, executions: Sequence[Execution], start_by: float, room: int
    ) -> None:
        """Send tasks to the worker; `room`: how many more may follow. The worker begins none of them after
        `start_by`, by the monotonic clock."""

    async def run(self, worker: PythonWorker, execution: Execution, place: Place) -> Sequence[Outcome]:
        """Run a task that was sent to the worker; its outcome, and those of tasks that were answered with it.

        Empty when the worker gave the task back.
        """

    def has(self, worker: PythonWorker) -> bool:
        """Return whether this is still the slot's worker."""

    async def discard(self, worker: PythonWorker) -> None:
        """Replace the worker, for it may hold tasks that nothing waits for."""

    async def release(self, worker: PythonWorker) -> None:
        """Replace the worker if it has run as many tasks as it may."""

    def is_intact(self) -> bool:
        """Return whether the slot's folder is where the slot made it."""

    async def restore(self) -> None:
        """Make the slot's folder and its worker anew. Raises OSError."""

    def clean(self, outcome: Outcome | None = None) -> None:
        """Remove what an outcome left in its outputs (None: all outcomes), once it was uploaded."""

    async def aclose(self) -> None:
        """Kill what runs and give everything back."""


@dataclass(slots=True, eq=False)
class QueuedTask:
    """A task that was given to a slot and has not ended."""

    number: int
    item: TaskItem
    start_by: float = float("-inf")
    """Until when it may begin, by the monotonic clock; never before its slot was told to run it."""
    execution: Execution = field(init=False)
    """Known before the task is started."""

    @property
    def late(self) -> bool:
        """Whether it may not begin any more."""
        return time.monotonic() > self.start_by


@dataclass(slots=True)
class _Pack:
    """Tasks that are with the worker together."""

    worker: PythonWorker
    key: Key
    """Of the tasks that may run in the worker."""
    place: Place
    room: int
    """How many more it may be sent."""
    closed: bool = False
    """Whether it has a task that takes files of other tasks: no other one rides with it."""


OnEnded = Callable[[Sequence[tuple[QueuedTask, Outcome]]], None]


class SlotQueue:
    """Runs its tasks one after the other in a slot; see the module."""

    def __init__(self, slot: SlotProtocol, tasks: Iterable[QueuedTask], ended: OnEnded) -> None:
        """`ended` gets the outcomes as they come, in the order of the tasks."""
        self._slot = slot
        self._tasks = deque(tasks)
        self._ended = ended
        self._begun = 0
        self._pack: _Pack | None = None

    def __bool__(self) -> bool:
        return bool(self._tasks)

    @property
    def tasks(self) -> Sequence[QueuedTask]:
        """Those that have not ended."""
        return tuple(self._tasks)

    def keep(self, numbers: Iterable[int], start_by: float) -> None:
        """Let these begin until `start_by`, and drop the tasks of other numbers. None has begun."""
        kept = set(numbers)
        self._tasks = deque(task for task in self._tasks if task.number in kept)
        for task in self._tasks:
            task.start_by = start_by

    def add(self, tasks: Sequence[QueuedTask]) -> None:
        """Run these after those that are here. They are of the same bundle."""
        is_next = self._begun == len(self._tasks)
        self._tasks += tasks
        if self._pack is not None and is_next:
            self._dispatch(self._pack)

    def recall(self) -> list[QueuedTask]:
        """Take back the tasks that have not begun."""
        self._stop_dispatching()
        recalled = list(islice(self._tasks, self._begun, None))
        for _ in recalled:
            self._tasks.pop()
        return recalled

    def take(self, task: QueuedTask) -> None:
        """Drop one task that has not begun."""
        self._tasks.remove(task)

    def take_all(self) -> list[QueuedTask]:
        """Drop all tasks; none of them runs any more."""
        tasks = list(self._tasks)
        self._tasks.clear()
        return tasks

    async def run(self, bundle: Bundle, files: Path) -> None:
        """Run until every task has ended, or the first of the rest is late. `files`: the bundle's folder in
        the cache.

        Raises `StorageError` or OSError when the node itself cannot run a task. Cancelling this tells the
        task that runs to end, and raises when none of its processes is left.
        """
        try:
            place = await self._slot.prepare(bundle, files)
        except ConfigurationError as error:
            rejected = outcomes.rejected(str(error))
            self._end([outcomes.ended_now(rejected) for _ in self._tasks])
            return
        while self._tasks and not self._tasks[0].late:
            await self._run_next(place)

    async def _run_next(self, place: Place) -> None:
        """Run the first task, and those after it that can ride along."""
        execution = self._tasks[0].execution
        self._begun = 1
        try:
            match self._slot.resolve(execution, place):
                case commands.Refusal(reason, kind):
                    self._end([outcomes.ended_now(outcomes.failed(kind, reason))])
                case commands.RunProgram(argv):
                    self._end([await self._slot.launch(execution, argv, place)])
                case commands.Action():
                    await self._run_pack(place)
        finally:
            self._begun = 0

    async def _run_pack(self, place: Place) -> None:
        """Send tasks to the worker at once, and wait for their outcomes."""
        first = self._tasks[0].execution
        worker = await self._slot.worker(place, first)
        self._pack = _Pack(worker, first.process_key, place, self._slot.room(worker))
        self._begun = 0
        worker.on_late = self._stop_dispatching
        self._dispatch(self._pack)
        try:
            while self._begun and self._slot.has(worker):
                ended = await self._slot.run(worker, self._tasks[0].execution, place)
                if not ended:
                    break
                self._end(ended)
        except BaseException:
            await self._slot.discard(worker)
            raise
        finally:
            self._pack = None
        self._begun = 0
        await self._slot.release(worker)

    def _dispatch(self, pack: _Pack) -> None:
        """Send to the worker what comes next, after what it was sent, as far as it is for it."""
        tasks: list[QueuedTask] = []
        if pack.closed:
            return
        for task in islice(self._tasks, self._begun, self._begun + pack.room):
            if task.late or task.execution.process_key != pack.key:
                break
            if not isinstance(self._slot.resolve(task.execution, pack.place), commands.Action):
                break
            if task.execution.files and (tasks or self._begun):
                break
            tasks.append(task)
            if task.execution.files:
                pack.closed = True
                break
        if tasks:
            pack.room -= len(tasks)
            self._begun += len(tasks)
            start_by = min([task.start_by for task in tasks])
            self._slot.dispatch(pack.worker, [task.execution for task in tasks], start_by, pack.room)

    def _stop_dispatching(self) -> None:
        """Take back from the worker what has not begun there, and send it nothing more."""
        if self._pack is not None:
            self._begun -= self._pack.worker.recall()
            self._pack = None

    def _end(self, ended: Sequence[Outcome]) -> None:
        """Take the first tasks out, with their outcomes."""
        found = [(self._tasks.popleft(), outcome) for outcome in ended]
        self._begun = max(0, self._begun - len(found))
        self._ended(found)
