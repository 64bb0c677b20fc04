"""The presence document of a session: who holds the mailbox."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from batchflow.errors import (
    BlobNotFound,
    ProtocolError,
    StorageError,
)
from batchflow.model import Status
from batchflow.ports.storage import EXACTNESS
from batchflow.protocol import layout
from batchflow.protocol.documents import Presence, gone_after
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchflow.sessions.context import SessionContext

logger = logging.getLogger(__name__)
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

    def __init__(self, context: SessionContext) -> None:
        self._context = context
        self._ctl = context.runtime.ctl
        self._blob = layout.session_blob(context.job_name, context.name)
        self._holder = f"{socket.gethostname()}, process {os.getpid()}"
        self.predecessor_until: float | None = None
        """Until when an earlier holder that was not closed may have lived, by the services' clock.

        None when there was no such holder.
        """

    async def open(self) -> None:
        """Read the presence document of an earlier holder, if any. Raises `StorageError`."""
        if (found := await self._read()) is not None:
            self.predecessor_until = found.written_at + _LAST_BREATH * found.presence.interval + EXACTNESS

    async def living_holder(self) -> str | None:
        """Return the name of another client that shows signs of life in this mailbox, if any."""
        found = await self._read()
        if found is None or found.presence.nonce == self._context.incarnation:
            return None
        alive = found.age < gone_after(found.presence.interval)
        return found.presence.holder if alive else None

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
        """Write the document now and then, while the mailbox is this session's."""
        interval = self._context.settings.presence_interval
        while True:
            if holds_mailbox():
                await self._write(interval)
            await asyncio.sleep(interval)

    async def _write(self, interval: float) -> None:
        counts = asdict(self._context.tracker.counts)
        document = Presence(self._holder, self._context.incarnation, time.time(), interval, counts)
        try:
            await self._ctl.put(self._blob, document.encode())
        except StorageError as error:
            logger.warning("presence_not_written", extra={"blob": self._blob, "error": str(error)})

    async def release(self) -> None:
        """Replace the document by what remains: how the session's tasks ended."""
        context, counts = self._context, self._context.tracker.counts
        if counts.done and not context.lifetime.job_deleted:
            unread = context.tracker.unread_by_status()
            blob = layout.ended_blob(
                context.job_name,
                context.name,
                context.incarnation,
                ended=[getattr(counts, state) for state in layout.ENDED],
                unread=[unread[Status(state)] for state in layout.ENDED],
            )
            try:
                await self._ctl.put(blob, b"")
            except StorageError as error:
                logger.warning("counts_not_written", extra={"blob": blob, "error": str(error)})
        await context.delete_blob(self._ctl, self._blob)
