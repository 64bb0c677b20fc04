"""Performs what the graph of waiting tasks decides: sends those that are ready, and ends the others."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from batchflow.errors import BatchflowError, SessionClosed
from batchflow.model import Status
from batchflow.sessions.records.tracker import (
    Entry,
    cancelled_result,
    dependency_failed_result,
    file_missing_result,
    submit_failed_result,
)
from batchflow.sessions.workflows.graph import DependencyGraph, GraphCommand, Ready, Unreachable, Waiting
from batchflow.sessions.workflows.record import WorkflowRecord
from batchflow.sessions.workflows.task_files import FileMissing, FilePasser

if TYPE_CHECKING:
    from batchflow.sessions.records.outcomes import Outcomes
    from batchflow.sessions.workflows.keeper import WorkflowKeeper
    from batchflow.sessions.workflows.values import ValuePasser

_AT_ONCE: Final = 64
"""Tasks that are sent or ended in one go. After them the event loop has a turn."""


class TaskReleaser(Protocol):
    """Puts tasks that were held into the outbox."""

    def has_room(self) -> bool: ...

    def release(self, waiting: Waiting) -> bool:
        """Put a task into the outbox. False when that takes time, as for values that lie in blobs.

        Raises `BatchflowError`, OSError for one that can never be sent.
        """

    async def release_by_reference(self, waiting: Waiting) -> None:
        """Put a task into the outbox for which `release` was not enough.

        Raises as `release` does, and `FileMissing`.
        """

    def keep_unsent(self, waiting: Waiting) -> None:
        """Keep the arguments of a task that is never sent, for its result."""


class Dependents:
    """The tasks of a session that wait for others.

    What becomes ready is sent at once, in the call that told the outcome, so that a chain of tasks costs no
    turn of the event loop a step. What is too much for one turn is left to `run`.
    """

    def __init__(
        self, outcomes: Outcomes, releaser: TaskReleaser, values: ValuePasser, files: FilePasser
    ) -> None:
        self.keeper: WorkflowKeeper | None = None
        """Keeps what waits beyond the session; None in one that cannot be found again."""
        self.graph: DependencyGraph = DependencyGraph()
        self.record: WorkflowRecord = WorkflowRecord()
        self._outcomes = outcomes
        self._releaser = releaser
        self._values = values
        self._files = files
        self._ended: deque[Entry] = deque()
        """Tasks with an outcome that the graph does not know of yet."""
        self._ready: deque[Waiting] = deque()
        self._releasing = False
        """Whether `run` sends a task that it has taken from those that are ready."""
        self._working = False
        self._stopped = False
        self._wake = asyncio.Event()
        outcomes.on_ended = self.ended

    def hold(self, waiting: Waiting) -> None:
        """Take in a task that waits for others. It may have its outcome when this returns."""
        self.record.add(waiting.entry, waiting.inputs)
        if self.keeper is not None:
            self.keeper.hold(waiting)
        for each in waiting.submission.inputs:
            if each.entry.done:
                self._values.needed(each.entry, [waiting])
        self._perform(self.graph.hold(waiting))
        self.work()
        self._outcomes.change.notify()

    def ended(self, entry: Entry) -> None:
        """Note that a task has its outcome."""
        self.record.ended(entry)
        self._values.ended(entry)
        self._files.ended(entry)
        if self.keeper is not None:
            self.keeper.ended(entry)
        if self._ended or self._ready or self.graph.concerns(entry):
            self._ended.append(entry)
            self.work()

    async def run(self) -> None:
        """Send and end what could not be at once, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self.is_behind:
                self.work()
                self._outcomes.change.notify()
                if not self._ready or self._ended:
                    await asyncio.sleep(0)
                elif not self._releaser.has_room():
                    await self._outcomes.room.wait()
                else:
                    self._releasing = True
                    try:
                        await self._release_by_reference(self._ready.popleft())
                    finally:
                        self._releasing = False
            self._outcomes.room.notify()

    async def drain(self) -> None:
        """Return when nothing is ready that is not in the outbox."""
        while self.is_behind or self._releasing:
            self._wake.set()
            await self._outcomes.room.wait()

    def stop(self) -> None:
        """Send nothing more, because the session closes."""
        self._stopped = True
        self._ended.clear()

    @property
    def is_behind(self) -> bool:
        """Whether tasks are to be sent or ended that could not be at once. Not after `stop`."""
        return bool(self._ended or self._ready) and not self._stopped

    def work(self) -> None:
        """Do what is due, up to a limit. A call from within, by an outcome that this gives, does nothing."""
        if self._working or self._stopped:
            return
        self._working = True
        try:
            for _ in range(_AT_ONCE):
                if self._ended:
                    self._tell_graph(self._ended.popleft())
                elif not self._ready or not self._releaser.has_room() or not self._release():
                    break
        finally:
            self._working = False
        if self.is_behind:
            self._wake.set()

    def _tell_graph(self, entry: Entry) -> None:
        if (own := self.graph.find(entry)) is not None:
            self._releaser.keep_unsent(own)
        if not entry.is_here:
            self._values.needed(entry, self.graph.consumers(entry))
        self._perform(self.graph.ended(entry))

    def _perform(self, commands: list[GraphCommand]) -> None:
        for command in commands:
            match command:
                case Ready(waiting):
                    self._ready.append(waiting)
                case Unreachable(waiting, because):
                    self._releaser.keep_unsent(waiting)
                    self._end(waiting.entry, because)

    def _end(self, entry: Entry, because: Entry) -> None:
        if because.status is Status.CANCELLED:
            text = f"task {because.task_id} ({because.command}), which it waited for, was cancelled"
            self._outcomes.resolve(entry, cancelled_result(entry, text))
        else:
            self._outcomes.resolve(entry, dependency_failed_result(entry, because))

    def _release(self) -> bool:
        """Send the first one that is ready. False when that is for `run` to do."""
        waiting = self._ready[0]
        if waiting.entry.done:
            self._releaser.keep_unsent(waiting)
        else:
            try:
                if not self._releaser.release(waiting):
                    return False
            except (BatchflowError, OSError) as error:
                self._fail(waiting, error)
        self._ready.popleft()
        return True

    async def _release_by_reference(self, waiting: Waiting) -> None:
        if waiting.entry.done:
            self._releaser.keep_unsent(waiting)
            return
        try:
            await self._releaser.release_by_reference(waiting)
        except SessionClosed:
            return  # it waits on, for a later session
        except FileMissing as error:
            self._releaser.keep_unsent(waiting)
            self._outcomes.resolve(waiting.entry, file_missing_result(waiting.entry, str(error)))
        except (BatchflowError, OSError) as error:
            self._fail(waiting, error)

    def _fail(self, waiting: Waiting, error: Exception) -> None:
        entry = waiting.entry
        text = f"its inputs have ended, but it cannot be sent: {error}"
        self._outcomes.resolve(entry, submit_failed_result(entry, text))
