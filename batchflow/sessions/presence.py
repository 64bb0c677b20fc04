"""The presence document of a session: who holds the mailbox."""

from __future__ import annotations

import asyncio
import math
import os
import random
import socket
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from batchflow.errors import BlobNotFound, ProtocolError, StorageError
from batchflow.pools.jobs import note_closed
from batchflow.ports.storage import EXACTNESS
from batchflow.protocol import layout
from batchflow.protocol.documents import Presence, gone_after
from batchflow.sessions.records.checkpoint import UNKNOWN
from batchflow.support.cadence import sleep_until_turn
from batchflow.support.event_log import event_logger
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchflow.sessions.records.context import SessionContext

logger = event_logger(__name__)
_STRETCH: Final = 4
"""Intervals that the document of an idle session lasts if no other client can look for the session."""
_MOST_STRETCH: Final = 60
"""Intervals that it lasts at most: five minutes, unless the settings say otherwise."""
_STRETCH_AT_REST: Final = 24
"""Intervals that it lasts while the pool has no agents: two minutes."""
_IDLE_SHARE: Final = 2
"""Documents of idle sessions that a client writes in an interval, however many sessions it has."""
_BUSY_SHARE: Final = 20
"""The same of sessions that have tasks, or new results."""
_LOCK_SLACK: Final = 5.0
"""Seconds beyond the duration of a lock in which the broker has ended it."""
_LAST_BREATH: Final = 2
"""Intervals for which a dead holder may have lived after its last sign of life: the next was under way."""


@frozen
class _Found:
    """A presence document, and when it was written, by the storage's clock."""

    presence: Presence
    written_at: float
    age: float


class PresenceKeeper:
    """Writes which client holds the mailbox, so that a second client can name the first."""

    def __init__(self, context: SessionContext, *, found_again: bool) -> None:
        """`found_again`: whether another client may look for the mailbox, by the session's name."""
        self._context = context
        self._least_stretch = 1 if found_again else _STRETCH
        self._told: dict[str, int] | None = None
        """The counts of the document."""
        self._written_at = -math.inf
        """When the document was written last, by the loop's clock."""
        self._lasting = 0.0
        """Seconds that it lasts: the next one is written before."""
        self._part = 1.0
        """The part of its time after which that is."""
        self._ctl = context.runtime.ctl
        self._blob = layout.session_blob(context.job_name, context.name)
        self._holder = f"{socket.gethostname()}, process {os.getpid()}"
        self._predecessor: _Found | None = None
        """The document of another holder that was read last."""

    async def open(self) -> None:
        """Read the presence document of an earlier holder, if any. Raises `StorageError`."""
        await self.living_holder()

    def gone_by(self, holder: str) -> float | None:
        """Return when an earlier holder was dead, by the services' clock; None: its document does not say.

        `holder`: its incarnation, or `UNKNOWN` for any.
        """
        found = self._predecessor
        if found is None or holder not in (found.presence.nonce, UNKNOWN):
            return None
        return found.written_at + _LAST_BREATH * found.presence.interval + EXACTNESS

    async def living_holder(self, locked: float = math.inf) -> str | None:
        """Return the name of another client that shows signs of life in this mailbox, if any.

        `locked`: seconds for which the mailbox was seen locked. A holder whose signs of life come seldom is
        dead or alive: it lives if its lock outlasts a lock's duration.
        """
        found = await self._read()
        if found is None or found.presence.nonce == self._context.incarnation:
            return None
        self._predecessor = found
        interval = found.presence.interval
        if locked < self._context.runtime.manifest.lock_duration + _LOCK_SLACK:
            interval = min(interval, self._context.settings.presence_interval)
        return found.presence.holder if found.age < gone_after(interval) else None

    async def _read(self) -> _Found | None:
        """Read the document, and its age by the storage's clock, which all clients go by."""
        try:
            async for info in self._ctl.list(self._blob):
                if info.name == self._blob:
                    presence = Presence.decode((await self._ctl.get(self._blob)).data)
                    return _Found(presence, info.modified_at, info.age)
        except (BlobNotFound, ProtocolError):
            return None
        return None

    async def run(self, holds_mailbox: Callable[[], bool]) -> None:
        """Write the document now and then, while the mailbox is this session's.

        A session that has nothing to do writes it more seldom. So does each of many sessions of a client.
        """
        interval, clock = self._context.settings.presence_interval, asyncio.get_running_loop().time
        while True:
            counts = asdict(self._context.tracker.counts)
            is_idle = counts == self._told and not len(self._context.tracker)
            lasting = interval * self._stretch(is_idle)
            due_at = self._written_at + self._part * min(lasting, self._lasting)
            if holds_mailbox() and clock() >= due_at:
                self._lasting, self._part = lasting, random.uniform(0.5, 1.0)
                await self._write(lasting, counts)
            await sleep_until_turn(interval)

    def _stretch(self, is_idle: bool) -> int:
        """Return how many intervals the document lasts."""
        runtime = self._context.runtime
        sessions = len(runtime.open_sessions)
        if is_idle:
            least = _STRETCH_AT_REST if runtime.at_rest else self._least_stretch
            return min(_MOST_STRETCH, max(least, sessions // _IDLE_SHARE))
        return min(_MOST_STRETCH, max(1, sessions // _BUSY_SHARE))

    async def _write(self, interval: float, counts: dict[str, int]) -> None:
        starts_nodes = not self._context.runtime.connections.restricted
        document = Presence(
            self._holder,
            self._context.incarnation,
            time.time(),
            interval,
            counts,
            starts_nodes,
            self._context.runtime.load.lanes.get(self._context.mailbox_id),
        )
        try:
            await self._ctl.put(self._blob, document.encode())
            self._told, self._written_at = counts, asyncio.get_running_loop().time()
        except StorageError as error:
            self._told, self._written_at = None, -math.inf
            logger.warning("presence_not_written", extra={"blob": self._blob, "error": str(error)})

    async def release(self) -> None:
        """Replace the document by what remains: how the session's tasks ended."""
        context, tracker = self._context, self._context.tracker
        if tracker.counts.done and not context.lifetime.job_deleted:
            session = (context.job_name, context.name, context.incarnation)
            await note_closed(self._ctl, session, tracker.counts, tracker.unread_by_status())
        await context.delete_blob(self._ctl, self._blob)
