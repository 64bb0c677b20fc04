"""The cancellations of a session: a document that agents read, and the outcomes that follow."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import anyio

from batchflow.errors import (
    BlobConflict,
    BlobNotFound,
    JobNotFound,
    ProtocolError,
    StorageError,
)
from batchflow.protocol import layout
from batchflow.protocol.documents import Cancellation
from batchflow.sessions.tracker import cancelled_result

if TYPE_CHECKING:
    from batchflow.session import Session
    from batchflow.sessions.tracker import Entry

logger = logging.getLogger(__name__)

_CONFIRMATION: Final = 5.0
"""Seconds that an agent has to confirm a cancellation before the client gives the outcome itself."""
KEPT: Final = 1000
"""Confirmed cancellations that stay written."""


class Cancellations:
    """The session's cancellation document: the numbers of the tasks that shall not run.

    It is there as long as tasks may be queued, so that whoever deletes the job finds every client of it, and
    keeps what earlier holders of the mailbox cancelled. A cancellation that no agent confirmed stays, for the
    task may still lie in the queue. Of those that one did the last `KEPT` stay: an agent that died before it
    completed the message leaves it to another one.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._blob = layout.cancellation_blob(session.job_name, session.name)
        self._earlier = Cancellation()
        """What is not this session's own in it."""
        self._etag = ""
        self._made = False
        self._wanted: dict[int, Entry] = {}
        self._unconfirmed: set[int] = set()
        self._written: set[int] = set()
        self._lock = anyio.Lock()

    async def open(self) -> None:
        """Take over the document, or make it. This session is none of those of a job that was deleted."""
        await self._load()
        if self._earlier.everything:
            spared = (*self._earlier.spared, self._session.incarnation)
            self._earlier = replace(self._earlier, spared=spared)
            await self._write()

    async def _load(self) -> None:
        ctl = self._session.pool.runtime.ctl
        try:
            blob = await ctl.get(self._blob)
            found = Cancellation.decode(blob.data)
        except (BlobNotFound, ProtocolError):
            self._etag = await ctl.put(self._blob, Cancellation().encode())
            self._made = True
            return
        own = self._session.incarnation
        others = {name: rows for name, rows in found.intervals.items() if name != own}
        self._earlier, self._etag = replace(found, intervals=others), blob.etag

    async def release(self) -> None:
        """Remove the document, if no task can be queued that needs it."""
        if self._made and not len(self._session._tracker) and not self._unconfirmed:
            await self._session._drop_blob(self._session.pool.runtime.ctl, self._blob)

    async def run(self) -> None:
        """Look now and then whether the job is still there. Raises `JobNotFound` when it was deleted."""
        while True:
            await asyncio.sleep(self._session._settings.presence_interval)
            if await self._deleted():
                raise JobNotFound(f"job {self._session.job_name!r} was deleted")

    async def _deleted(self) -> bool:
        """Whoever deletes a job cancels all that its clients have submitted."""
        try:
            blob = await self._session.pool.runtime.ctl.get_if_changed(self._blob, self._etag)
            found = None if blob is None else Cancellation.decode(blob.data)
        except (StorageError, ProtocolError) as error:
            logger.info("cancellations_not_read", extra={"blob": self._blob, "error": str(error)})
            return False
        return found is not None and found.everything and self._session.incarnation not in found.spared

    async def cancel(self, entries: list[Entry]) -> None:
        """Return when every agent can see it. Raises `StorageError` when it cannot be written."""
        if not entries:
            return
        self._wanted.update((entry.sequence, entry) for entry in entries)
        async with self._lock:
            if not all(entry.sequence in self._written for entry in entries):
                await self._write()
        self._session._background.start(self._confirm(entries), "confirm cancellations")

    def confirmed(self, sequence: int) -> None:
        """An agent gave this task an outcome after all."""
        self._unconfirmed.discard(sequence)

    async def _write(self) -> None:
        confirmed = [n for n, entry in self._wanted.items() if entry.done and n not in self._unconfirmed]
        for number in confirmed[:-KEPT]:
            del self._wanted[number]
        numbers = sorted(self._wanted)
        own = {self._session.incarnation: tuple(intervals(numbers))} if numbers else {}
        while True:
            document = replace(self._earlier, intervals={**self._earlier.intervals, **own})
            try:
                data = document.encode()
                self._etag = await self._session.pool.runtime.ctl.put(self._blob, data, if_match=self._etag)
            except (BlobConflict, BlobNotFound):
                await self._load()  # somebody deleted the job, or an earlier holder left
            else:
                break
        self._written = set(numbers)

    async def _confirm(self, entries: list[Entry]) -> None:
        await asyncio.sleep(_CONFIRMATION)
        session = self._session
        for entry in entries:
            if not entry.done:
                self._unconfirmed.add(entry.sequence)
                outcome = cancelled_result(entry, "no agent confirmed it in time")
                session._resolve(entry, outcome, mail_comes=True)
        session._changed()


def intervals(numbers: list[int]) -> list[tuple[int, int]]:
    """Sorted numbers as intervals, both ends included."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
