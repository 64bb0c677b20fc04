"""What a session does beside its mail: its sign of life, its cancellations, a look at the agents."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import Counter
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Final

import anyio

from batchflow import control
from batchflow.agents import sample_heartbeats
from batchflow.control import Cancellation, Presence, gone_after
from batchflow.errors import (
    BatchflowError,
    BlobConflict,
    BlobNotFound,
    JobNotFound,
    NoAgents,
    ProtocolError,
    ServiceError,
    StorageError,
)
from batchflow.explain import own_version
from batchflow.frozen import frozen
from batchflow.outcomes import cancelled
from batchflow.storage import EXACTNESS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batchflow.control import Heartbeat
    from batchflow.session import Session
    from batchflow.tracker import Entry

logger = logging.getLogger(__name__)

_CONFIRMATION: Final = 5.0
"""Seconds that an agent has to confirm a cancellation before the client gives the outcome itself."""
KEPT: Final = 1000
"""Confirmed cancellations that stay written."""
_LAST_BREATH: Final = 2
"""Intervals for which a holder that died may have lived after its last sign of life: the next one was due, or
on its way."""
_SOON: Final = 0.5
"""Seconds to the second look for agents by a session that has found none; then twice as many each time."""
_AGENTS_PATIENCE: Final = 60.0
"""Seconds that started agents have for their first sign of life before that is told."""


@frozen
class _Found:
    """A presence document, and when it was written, by the storage's clock."""

    presence: Presence
    written_at: float
    age: float


class PresenceKeeper:
    """Tells who holds the mailbox, so that a second client can name the first."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._blob = control.session_blob(session.job_name, session.name)
        self._holder = f"{socket.gethostname()}, process {os.getpid()}"
        self.predecessor_until: float | None = None
        """Until when an earlier holder that was not closed may have lived, by the services' clock; None when
        there was none."""

    async def open(self) -> None:
        """Look who was here before. Raises `StorageError`."""
        if (found := await self._read()) is not None:
            self.predecessor_until = found.written_at + _LAST_BREATH * found.presence.interval + EXACTNESS

    async def living_holder(self) -> str | None:
        """Who else shows signs of life in this mailbox; None when nobody does."""
        found = await self._read()
        if found is None or found.presence.nonce == self._session.incarnation:
            return None
        alive = found.age < gone_after(found.presence.interval)
        return found.presence.holder if alive else None

    async def _read(self) -> _Found | None:
        """The document, and how old it is by the storage's clock, which is the one that all go by."""
        ctl = self._session.pool._ctl
        try:
            async for info in ctl.list(self._blob):
                if info.name == self._blob:
                    presence = Presence.decode((await ctl.get(self._blob)).data)
                    return _Found(presence, info.modified_at, info.age)
        except (BlobNotFound, ProtocolError):
            return None
        return None

    async def run(self) -> None:
        interval = self._session._settings.presence_interval
        while True:
            if self._session._inbox.held:
                await self._tell()
            await asyncio.sleep(interval)

    async def _tell(self) -> None:
        interval = self._session._settings.presence_interval
        counts = asdict(self._session.counts)
        document = Presence(self._holder, self._session.incarnation, time.time(), interval, counts)
        try:
            await self._session.pool._ctl.put(self._blob, document.encode())
        except StorageError as error:
            logger.warning("presence_not_written", extra={"blob": self._blob, "error": str(error)})

    async def release(self) -> None:
        await self._session._drop_blob(self._session.pool._ctl, self._blob)


class Cancellations:
    """The session's cancellation document: the numbers of the tasks that shall not run.

    It is there as long as tasks may be queued, so that whoever deletes the job finds every client of it, and
    keeps what earlier holders of the mailbox cancelled. A cancellation that no agent confirmed stays, for the
    task may still lie in the queue. Of those that one did the last `KEPT` stay: an agent that died before it
    completed the message leaves it to another one.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._blob = control.cancellation_blob(session.job_name, session.name)
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
        ctl = self._session.pool._ctl
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
            await self._session._drop_blob(self._session.pool._ctl, self._blob)

    async def run(self) -> None:
        """Look now and then whether the job is still there. Raises `JobNotFound` when it was deleted."""
        while True:
            await asyncio.sleep(self._session._settings.presence_interval)
            if await self._deleted():
                raise JobNotFound(f"job {self._session.job_name!r} was deleted")

    async def _deleted(self) -> bool:
        """Whoever deletes a job cancels all that its clients have submitted."""
        try:
            blob = await self._session.pool._ctl.get_if_changed(self._blob, self._etag)
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
                self._etag = await self._session.pool._ctl.put(self._blob, data, if_match=self._etag)
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
                outcome = cancelled(entry, "no agent confirmed it in time")
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


class AgentsWatch:
    """Sees to it that somebody runs the session's tasks, or says that nobody does."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._alone_since: float | None = None
        """When it was first seen that no agent lives; None while some do."""
        self._strange = set[str]()
        """Other versions than ours, of agents that were told of."""

    async def start(self) -> None:
        """Start the pool's agents where they do not live. A failure becomes the session's trouble."""
        try:
            await self._session.pool.start()
        except BatchflowError as error:
            if await self._alive():
                logger.info("agents_not_started", extra={"error": str(error)})
                return
            retryable = isinstance(error, ServiceError) and error.retryable
            trouble = NoAgents(f"the pool's agents cannot be started: {error}", retryable=retryable)
            trouble.__cause__ = error
            self._session._set_trouble("agents", trouble)

    async def _alive(self) -> bool:
        """Whether agents live, whoever started them."""
        try:
            return bool(await self._session.pool.heartbeats())
        except ServiceError:
            return False

    async def run(self, starting: asyncio.Task[None]) -> None:
        await starting
        interval, soon = self._session.pool.client.settings.agent.heartbeat_interval, _SOON
        await self._try(self._meet)
        while not self._session._policy.slots and soon < interval:
            await asyncio.sleep(soon)
            soon *= 2
            await self._try(self._meet)
        while True:
            await asyncio.sleep(interval)
            if len(self._session._tracker):
                await self._try(self._look)

    async def _try(self, look: Callable[[], Awaitable[object]]) -> None:
        try:
            await look()
        except ServiceError as error:
            self._session._warn(f"the agents' heartbeats cannot be read: {error}")

    async def _meet(self) -> bool:
        """Whether there are agents; who they are is noted."""
        session = self._session
        sample = await sample_heartbeats(session.pool._out)
        session._policy.slots = sample.open_slots
        if sample.alive:
            self._alone_since = None
            self._tell_versions(sample.beats)
            session._clear_trouble("agents", f"{sample.alive} agents are alive")
        return bool(sample.alive)

    def _tell_versions(self, beats: list[Heartbeat]) -> None:
        """Of each other version once."""
        own = own_version()
        versions = Counter(beat.versions.get("batchflow", "unknown") for beat in beats)
        for version in sorted(versions.keys() - self._strange - {own}):
            self._strange.add(version)
            self._session._warn(
                f"{versions[version]} of {len(beats)} agents are of batchflow {version}, this is {own}: "
                "await pool.stop(), then pool.start() brings this version"
            )

    async def _look(self) -> None:
        if await self._meet():
            return
        session = self._session
        now = time.monotonic()
        if self._alone_since is None:
            self._alone_since = now
        await self.start()  # those that lived may have gone: drained, idle or dead
        if "agents" not in session._troubles and now - self._alone_since > _AGENTS_PATIENCE:
            explanation = await session.pool.explain()
            trouble = NoAgents(f"no agent of pool {session.pool.id} is alive. {explanation}")
            session._set_trouble("agents", trouble)
