"""What a `map` does in the background: submitting as results are read, and keeping their order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Iterable, Sized
from typing import TYPE_CHECKING, Any, Final

from batchflow.functions.command import FunctionCommand, label_of
from batchflow.protocol.packing import MOST_TASKS
from batchflow.protocol.values.arguments import as_arguments
from batchflow.sessions.records.submission import Submission
from batchflow.sessions.records.task_options import TaskOptions
from batchflow.support.waiting import ChangeNotifier

if TYPE_CHECKING:
    from batchflow.sessions.records.context import SessionContext
    from batchflow.sessions.records.outcomes import Outcomes
    from batchflow.sessions.records.tracker import Entry
    from batchflow.sessions.submitter import Submitter

DEFAULT_WINDOW: Final = 10_000
"""Maximum number of tasks of a `map` that are under way or unread."""


class MapRun:
    """What a `map` does in the background. Does not know its reader, so that a dropped one is noticed."""

    def __init__(
        self,
        context: SessionContext,
        outcomes: Outcomes,
        submitter: Submitter,
        *,
        command: str | FunctionCommand,
        inputs: Iterable[Any] | AsyncIterable[Any],
        window: int,
        options: TaskOptions,
    ) -> None:
        self._context = context
        self._outcomes = outcomes
        self._submitter = submitter
        self._command = command
        self._inputs = inputs
        self._window = window
        self._options = options
        self._room = ChangeNotifier()
        self._turns = context.runtime.load.submitting
        self._filling = False
        """Whether this one has a turn, and is counted among those that fill messages."""
        self._pump: asyncio.Task[None] | None = None
        self._stopped = False
        self._done: deque[Entry] = deque()
        self._early: dict[int, Entry] = {}
        """Done before their turn, in an ordered map."""
        self._open: set[Entry] = set()
        self.total: int | None = len(inputs) if isinstance(inputs, Sized) else None
        """How many inputs there are, if that is known before they are read."""
        self.submitted: int = 0
        self.yielded: int = 0

    def start(self) -> None:
        if self._pump is None:
            self._pump = self._context.background.start(self._submit_all(), f"map {label_of(self._command)}")

    def stop(self) -> list[Entry]:
        """Submit no more, because the results are not read any more. Returns the tasks without an outcome."""
        self._stopped = True
        if self._pump is not None:
            self._pump.cancel()
        for entry in (*self._done, *self._early.values()):
            entry.drop()
        self._done.clear()
        self._early.clear()
        left = list(self._open)
        self._open.clear()
        return left

    def take(self, ordered: bool) -> Entry | None:
        """Return the next task to be read, as delivered; None while its outcome is to come.

        Raises `JournalError`; then it stays the next one.
        """
        if ordered:
            self._early.update((entry.index, entry) for entry in self._done)
            self._done.clear()
            entry = self._early.get(self.yielded)
        else:
            entry = self._done[0] if self._done else None
        if entry is not None:
            entry.deliver()
            if ordered:
                del self._early[self.yielded]
            else:
                self._done.popleft()
            self.yielded += 1
            self._room.notify()
        return entry

    @property
    def exhausted(self) -> bool:
        """Whether everything was submitted and read."""
        pump = self._pump
        return pump is not None and pump.done() and not pump.cancelled() and self.yielded == self.submitted

    def raise_error(self) -> None:
        """Raise what stopped the submitting, if anything did."""
        if self._pump is not None and (error := self._pump.exception()) is not None:
            raise error

    async def _submit_all(self) -> None:
        try:
            if isinstance(self._inputs, AsyncIterable):
                async for value in self._inputs:
                    await self._submit_one(value)
            else:
                for value in self._inputs:
                    if self.submitted % MOST_TASKS == 0:
                        await self._take_turn()
                    await self._submit_one(value)
            self._context.tracker.end_of_burst = True
        finally:
            self._leave_turn()
            self._inputs = ()  # they may be large, and the stream may be kept
            asyncio.get_running_loop().call_soon(self._outcomes.change.notify)

    async def _take_turn(self) -> None:
        """Submit as many tasks as fill a message when few other sessions of the client do so."""
        self._leave_turn()
        await self._turns.take(self)
        self._filling = True
        self._context.tracker.filling += 1

    def _leave_turn(self) -> None:
        self._turns.leave(self)
        self._context.tracker.filling -= self._filling
        self._filling = False

    async def _submit_one(self, value: Any) -> None:
        while self.submitted - self.yielded >= self._window:
            self._leave_turn()
            await self._room.wait()
        submission = Submission.of(self._command, as_arguments(value), **self._options)
        entry = await self._submitter.enqueue(submission, index=self.submitted, on_done=self._completed)
        self.submitted += 1
        self._open.add(entry)

    def _completed(self, entry: Entry) -> None:
        self._open.discard(entry)
        if self._stopped:
            entry.drop()
        else:
            self._done.append(entry)
