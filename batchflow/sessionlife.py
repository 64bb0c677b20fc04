"""What a session does beside its mail: its sign of life, its cancellations, a look at the agents."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from typing import TYPE_CHECKING, Final

import anyio

from batchflow import control
from batchflow.control import Cancellation, Presence
from batchflow.errors import BlobNotFound, NoAgents, ProtocolError, ServiceError, StorageError
from batchflow.model import Event
from batchflow.outcomes import cancelled

if TYPE_CHECKING:
    from batchflow.session import Session
    from batchflow.tracker import Entry

logger = logging.getLogger(__name__)

_CONFIRMATION: Final = 5.0
"""Seconds that an agent has to confirm a cancellation before the client gives the outcome itself."""
_SIGNS_OF_LIFE: Final = 3
"""A holder or an agent whose last sign of life is older than so many intervals counts as gone."""
_AGENTS_PATIENCE: Final = 60.0
"""Seconds that started agents have for their first sign of life before that is told."""


class PresenceKeeper:
    """Tells who holds the mailbox, so that a second client can name the first."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._blob = control.session_blob(session.job_name, session.name)
        self._holder = f"{socket.gethostname()}, process {os.getpid()}"

    async def living_holder(self) -> str | None:
        """Who shows signs of life in this mailbox; None when nobody does."""
        try:
            presence = Presence.decode((await self._session.pool._ctl.get(self._blob)).data)
        except (BlobNotFound, ProtocolError):
            return None
        age = time.time() - presence.beat_at
        return presence.holder if age < presence.interval * _SIGNS_OF_LIFE else None

    async def run(self) -> None:
        interval = self._session._settings.presence_interval
        while True:
            document = Presence(self._holder, self._session.incarnation, time.time(), interval)
            try:
                await self._session.pool._ctl.put(self._blob, document.encode())
            except StorageError as error:
                logger.warning("presence_not_written", extra={"blob": self._blob, "error": str(error)})
            await asyncio.sleep(interval)

    async def release(self) -> None:
        await self._session._drop_blob(self._session.pool._ctl, self._blob)


class Cancellations:
    """The session's cancellation document: the numbers of the tasks that shall not run."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._blob = control.cancellation_blob(session.job_name, session.name)
        self._wanted: dict[int, Entry] = {}
        self._written: set[int] = set()
        self._lock = anyio.Lock()

    async def cancel(self, entries: list[Entry]) -> None:
        """Return when every agent can see it. Raises `StorageError` when it cannot be written."""
        if not entries:
            return
        self._wanted.update((entry.sequence, entry) for entry in entries)
        async with self._lock:
            if not all(entry.sequence in self._written for entry in entries):
                await self._write()
        self._session._spawn(self._confirm(entries), "confirm cancellations")

    async def _write(self) -> None:
        self._wanted = {number: entry for number, entry in self._wanted.items() if not entry.done}
        numbers = sorted(self._wanted)
        document = Cancellation({self._session.incarnation: tuple(intervals(numbers))})
        await self._session.pool._ctl.put(self._blob, document.encode())
        self._written = set(numbers)

    async def _confirm(self, entries: list[Entry]) -> None:
        await asyncio.sleep(_CONFIRMATION)
        session = self._session
        for entry in entries:
            if not entry.done:
                outcome = cancelled(entry, session.incarnation, "no agent confirmed it in time")
                session._resolve(entry, outcome)
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
        self._started_at = 0.0

    async def start(self) -> None:
        """Start the pool's agents where they do not live. A failure becomes the session's trouble."""
        self._started_at = time.monotonic()
        try:
            await self._session.pool.start()
        except ServiceError as error:
            trouble = NoAgents(f"the pool's agents cannot be started: {error}", retryable=error.retryable)
            trouble.__cause__ = error
            self._session._set_trouble(trouble)

    async def run(self, starting: asyncio.Task[None]) -> None:
        await starting
        while True:
            await asyncio.sleep(self._session.pool.client.settings.agent.heartbeat_interval)
            if not len(self._session._tracker):
                continue
            try:
                await self._look()
            except ServiceError as error:
                self._session._warn(f"the agents' heartbeats cannot be read: {error}")

    async def _look(self) -> None:
        session = self._session
        beats = await session.pool.heartbeats()
        session._policy.slots = sum(beat.slots for beat in beats)
        if beats:
            if session._trouble is not None:
                session._set_trouble(None)
                session._tell(Event("info", f"{len(beats)} agents are alive", time.time()))
            return
        if session._trouble is not None:
            await self.start()
        elif time.monotonic() - self._started_at > _AGENTS_PATIENCE:
            explanation = await session.pool.explain()
            session._set_trouble(NoAgents(f"no agent of pool {session.pool.id} is alive. {explanation}"))
            await self.start()
