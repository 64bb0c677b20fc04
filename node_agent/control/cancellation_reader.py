"""Reads the cancellation documents of sessions."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from batchflow.errors import BlobNotFound, ProtocolError, StorageError
from batchflow.protocol import documents, layout
from node_agent.scheduling.events import CancellationRead, CancellationUnread, Event, Session

if TYPE_CHECKING:
    from batchflow.ports.storage import Container
    from node_agent.control.problems import Problems

logger = logging.getLogger(__name__)

_TIMEOUT: Final = 10.0
_KEPT: Final = 1024

_Known = tuple[str | None, documents.Cancellation | None]


class CancellationReader:
    """Reads cancellation documents by ETag. An unchanged document costs no transfer and no parsing."""

    def __init__(self, ctl: Container, problems: Problems, feed: Callable[[Event], None]) -> None:
        self._ctl = ctl
        self._problems = problems
        self._feed = feed
        self._known: OrderedDict[Session, _Known] = OrderedDict()

    async def read(self, session: Session) -> None:
        """Read one document and give it to the scheduler."""
        asked_at = time.monotonic()
        try:
            async with asyncio.timeout(_TIMEOUT):
                document = await self._current(session)
        except (StorageError, ProtocolError, TimeoutError) as error:
            if self._problems.begin("cancellations", f"cancellations cannot be read: {error}"):
                logger.warning("cancellation_unread", extra={"session": session, "error": str(error)})
            self._feed(CancellationUnread(session))
        else:
            self._problems.end("cancellations")
            self._feed(CancellationRead(session, document, asked_at))

    async def _current(self, session: Session) -> documents.Cancellation | None:
        etag, document = self._known.get(session, (None, None))
        try:
            blob = await self._ctl.get_if_changed(layout.cancellation_blob(*session), etag)
        except BlobNotFound:
            etag, document = None, None
        else:
            if blob is not None:
                etag, document = blob.etag, documents.Cancellation.decode(blob.data)
        self._keep(session, (etag, document))
        return document

    def _keep(self, session: Session, known: _Known) -> None:
        self._known[session] = known
        self._known.move_to_end(session)
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
