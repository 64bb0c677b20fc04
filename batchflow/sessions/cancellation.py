"""The cancellations of a session: a document that agents read, and the outcomes that follow."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

import anyio

from batchflow.errors import (
    BlobConflict,
    BlobNotFound,
    JobNotFound,
    ProtocolError,
    StorageError,
)
from batchflow.model import Status
from batchflow.protocol import layout
from batchflow.protocol.documents import Cancellation
from batchflow.protocol.wire import split_uid
from batchflow.sessions.records.tracker import budget_exceeded_result, cancelled_result
from batchflow.support.cadence import sleep_until_turn, until_turn
from batchflow.support.event_log import event_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchflow.protocol.wire import ResultItem
    from batchflow.sessions.records.context import SessionContext
    from batchflow.sessions.records.outcomes import Outcomes
    from batchflow.sessions.records.tracker import Entry

logger = event_logger(__name__)

_CONFIRMATION: Final = 5.0
"""Seconds after which a session resolves a cancelled task that no agent has confirmed."""
_IDLE_TURNS: Final = 12
"""Intervals between two looks at the document of a session without tasks: a minute by the default settings.
Agents heed it at once, whatever the session knows."""
_SEVERAL: Final = 3
"""Sessions of a client in one job, for which a listing costs less than a request for each."""
KEPT: Final = 1000
"""Confirmed cancellations that stay in the document."""


class Stoppable(Protocol):
    """What has submitted tasks, and submits no more once it is stopped."""

    def stop(self) -> list[Entry]:
        """Return the tasks without an outcome."""


class Cancellations:
    """The session's cancellation document: the numbers of the tasks that must not run.

    The document exists as long as tasks may be queued, so that the deletion of the job finds each client of
    it. It keeps what earlier holders of the mailbox cancelled. A cancellation that no agent confirmed stays,
    because the task may still be queued. Of the confirmed ones the last `KEPT` stay, because an agent that
    dies before it completes the message leaves the task to another agent. A task that waits for others is
    written as well: a later session may send it, as long as its outcome was not shown.
    """

    def __init__(
        self,
        context: SessionContext,
        outcomes: Outcomes,
        expect_message: Callable[[Entry], None],
        inputs_of: Callable[[list[Entry]], list[Entry]] = lambda _: [],
    ) -> None:
        """`expect_message`: called with a task that has an outcome although an agent's is still to come.

        `inputs_of`: returns the tasks that only these wait for.
        """
        self._inputs_of = inputs_of
        self._context = context
        self._outcomes = outcomes
        self._expect_message = expect_message
        self._ctl = context.runtime.ctl
        self._blob = layout.cancellation_blob(context.job_name, context.name)
        self._earlier = Cancellation()
        """The part of the document that is not this session's own."""
        self._etag = ""
        self._made = False
        self._wanted: dict[int, Entry] = {}
        self._unconfirmed: set[int] = set()
        self.written: set[int] = set()
        self._lock = anyio.Lock()

    async def open(self) -> None:
        """Take over the document, or make it. An earlier deletion of the job does not end this session."""
        await self._load()
        if self._earlier.everything:
            spared = (*self._earlier.spared, self._context.incarnation)
            self._earlier = replace(self._earlier, spared=spared)
            await self._write()

    async def _load(self) -> None:
        try:
            blob = await self._ctl.get(self._blob)
            found = Cancellation.decode(blob.data)
        except (BlobNotFound, ProtocolError):
            self._etag = await self._ctl.put(self._blob, Cancellation().encode())
            self._made = True
            return
        own = self._context.incarnation
        others = {name: rows for name, rows in found.intervals.items() if name != own}
        self._earlier, self._etag = replace(found, intervals=others), blob.etag

    async def release(self) -> None:
        """Remove the document, unless a queued task may need it."""
        if (
            self._made
            and not len(self._context.tracker)
            and not self._unconfirmed
            and not any(entry.is_unsent for entry in self._wanted.values())
        ):
            await self._context.delete_blob(self._ctl, self._blob)

    async def run(self) -> None:
        """Check now and then that the job still exists. Raises `JobNotFound` when it was deleted.

        Seldom while the session has no tasks.
        """
        interval, clock = self._context.settings.presence_interval, asyncio.get_running_loop().time
        idle_until = clock() + until_turn(_IDLE_TURNS * interval)
        while True:
            await sleep_until_turn(interval)
            if not len(self._context.tracker) and clock() < idle_until - interval / 2:
                continue
            idle_until = clock() + until_turn(_IDLE_TURNS * interval)
            if await self._has_changed() and await self._deleted():
                self._context.lifetime.job_deleted = True
                raise JobNotFound(f"job {self._context.job_name!r} was deleted")

    async def _has_changed(self) -> bool:
        """Return whether the document may be another than this session's.

        Several sessions of a job ask by one listing, because their turn comes at the same time.
        """
        runtime, job = self._context.runtime, self._context.job_name
        if len(runtime.sessions.of_job(runtime.pool_id, job)) < _SEVERAL:
            return True
        try:
            etags = await runtime.etags.get(layout.cancellation_prefix(job))
        except StorageError:
            return True
        return etags is None or etags.get(self._blob) != self._etag

    async def _deleted(self) -> bool:
        """Return whether the job was deleted: its deletion cancels all tasks of its clients."""
        try:
            blob = await self._ctl.get_if_changed(self._blob, self._etag)
            found = None if blob is None else Cancellation.decode(blob.data)
        except (StorageError, ProtocolError) as error:
            logger.info("cancellations_not_read", extra={"blob": self._blob, "error": str(error)})
            return False
        if found is None or found.job_stays:  # only its tasks are cancelled
            return False
        return found.everything and self._context.incarnation not in found.spared

    async def cancel(self, entries: list[Entry], *, inputs: bool = False) -> None:
        """Return when every agent can see the cancellation. Raises `StorageError` when writing it fails.

        `inputs`: also of the tasks that these wait for, and no others.
        """
        self._context.lifetime.affinity.check()
        if inputs:
            entries = [*entries, *self._inputs_of(entries)]
        if all(entry.done for entry in entries):
            return
        self._context.lifetime.check_open()
        await self._request(self._withdraw(entries))

    def was_cancelled(self, incarnation: str, sequence: int) -> bool:
        """Return whether an earlier session of this name had cancelled this task of it."""
        return self._earlier.covers(incarnation, sequence)

    def give_up(self, entries: list[Entry]) -> None:
        """Cancel the tasks without waiting for it: the session's end does."""
        if (left := self._withdraw(entries)) and not self._context.lifetime.ended:
            self._context.background.start(self._request(left), "cancel abandoned tasks", last=True)

    async def refuse(
        self,
        entries: list[Entry],
        reason: str,
        outcome: Callable[[Entry, str], ResultItem] = budget_exceeded_result,
    ) -> None:
        """End tasks with this outcome, because no agent can say so. Those that were sent never run.

        Raises `StorageError` when the cancellation cannot be written; then those that were sent stay.
        """
        if left := self._end_unsent(entries, lambda entry: outcome(entry, reason)):
            self._wanted.update((entry.sequence, entry) for entry in left)
            async with self._lock:
                await self._write()
            self._resolve(left, lambda entry: outcome(entry, reason))
        self._outcomes.change.notify()

    def abandon(self, run: Stoppable) -> None:
        """Cancel what a dropped `map` had submitted.

        May be called from any thread, as the garbage collector does. Does nothing in a forked child.
        """
        if (loop := self._context.lifetime.affinity.loop) is not None:
            loop.call_soon_threadsafe(lambda: self.give_up(run.stop()))

    def _withdraw(self, entries: list[Entry]) -> list[Entry]:
        reason = "cancelled before it was sent"
        left = self._end_unsent(entries, lambda entry: cancelled_result(entry, reason))
        self._outcomes.change.notify()
        return left

    def _end_unsent(self, entries: list[Entry], outcome: Callable[[Entry], ResultItem]) -> list[Entry]:
        """End the tasks that were not sent. Return those whose cancellation is to be written.

        They were sent and have no outcome, or a later session may send them.
        """
        unfinished = [entry for entry in entries if not entry.done]
        outlives = self._outcomes.outlives
        left = [entry for entry in unfinished if not _can_be_withdrawn(entry) or outlives(entry)]
        for entry in unfinished:
            if _can_be_withdrawn(entry):  # not if it waited for one before it
                self._outcomes.resolve(entry, outcome(entry))
        return left

    async def _request(self, entries: list[Entry]) -> None:
        """Write the cancellation of tasks that were sent, or that a later session may send."""
        if not entries:
            return
        self._wanted.update((entry.sequence, entry) for entry in entries)
        async with self._lock:
            if not all(entry.sequence in self.written for entry in entries):
                await self._write()
        if not all(entry.done for entry in entries):
            self._context.background.start(self._confirm(entries), "confirm cancellations")

    def confirmed(self, sequence: int) -> None:
        """Note that an agent gave this task an outcome after all."""
        self._unconfirmed.discard(sequence)

    async def _write(self) -> None:
        confirmed = [
            number
            for number, entry in self._wanted.items()
            if entry.done and not entry.is_unsent and number not in self._unconfirmed
        ]
        for number in confirmed[:-KEPT]:
            del self._wanted[number]
        numbers = set(self._wanted)
        wanted: dict[str, list[int]] = {}
        for entry in self._wanted.values():  # one that this session goes on with is of an earlier incarnation
            incarnation, number = split_uid(entry.uid)
            wanted.setdefault(incarnation, []).append(number)
        while True:
            document = replace(self._earlier, intervals=self._with_earlier(wanted))
            try:
                data = document.encode()
                self._etag = await self._ctl.put(self._blob, data, if_match=self._etag)
            except (BlobConflict, BlobNotFound):
                await self._load()  # the job was deleted, or an earlier holder left
            else:
                break
        self.written = numbers

    def _with_earlier(self, wanted: dict[str, list[int]]) -> dict[str, tuple[tuple[int, int], ...]]:
        """Return the numbers to cancel by incarnation, with those of earlier holders."""
        merged = dict(self._earlier.intervals)
        for incarnation, numbers in wanted.items():
            earlier = (range(first, last + 1) for first, last in merged.get(incarnation, ()))
            merged[incarnation] = tuple(intervals(sorted({*numbers, *itertools.chain(*earlier)})))
        return merged

    async def _confirm(self, entries: list[Entry]) -> None:
        await asyncio.sleep(_CONFIRMATION)
        self._resolve(entries, lambda entry: cancelled_result(entry, "no agent confirmed it in time"))
        self._outcomes.change.notify()

    def _resolve(self, entries: list[Entry], outcome: Callable[[Entry], ResultItem]) -> None:
        """Give tasks that were sent an outcome of the session's own. An agent's may still come."""
        for entry in entries:
            if not entry.done:
                self._unconfirmed.add(entry.sequence)
                self._outcomes.resolve(entry, outcome(entry), expect_message=self._expect_message)


def _can_be_withdrawn(entry: Entry) -> bool:
    """Return whether a task has no outcome, and was not taken for a send."""
    return not entry.done and (entry.item is not None or entry.status is Status.WAITING)


def intervals(numbers: list[int]) -> list[tuple[int, int]]:
    """Return sorted numbers as intervals, both ends included."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
