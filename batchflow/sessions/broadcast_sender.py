"""Orders the tasks of a session, each of one node, where other sessions send theirs to a queue."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from batchflow.errors import BlobConflict, BlobNotFound, ProtocolError, StorageError
from batchflow.protocol import layout
from batchflow.protocol.broadcasts import BroadcastOrder, Broadcasts, order_of
from batchflow.protocol.packing import Pack
from batchflow.sessions.records.tracker import submit_failed_result
from batchflow.sessions.sender import TaskSender
from batchflow.support.backoff import Backoff
from batchflow.support.event_log import event_logger

if TYPE_CHECKING:
    from batchflow.sessions.records.context import SessionContext
    from batchflow.sessions.records.outcomes import Outcomes
    from batchflow.sessions.records.tracker import Entry

logger = event_logger(__name__)

_GATHERING: Final = 0.01
"""Seconds from a task to the order, which then has the tasks that are submitted with it."""


class BroadcastSender(TaskSender):
    """Writes one order for all tasks of the session, and takes it back when the session closes.

    The label of a task is its node's id.
    """

    def __init__(self, context: SessionContext, outcomes: Outcomes, seconds: float) -> None:
        """`seconds`: for which the order is valid."""
        super().__init__(context, outcomes)
        self._expires_at = time.time() + seconds
        self._items: list[tuple[str, bytes]] = []
        self._ordering: list[Entry] = []
        """Those whose order is being written."""

    async def open(self) -> None:
        """Open no link: there is nothing for the queues."""

    async def aclose(self) -> None:
        """Take the order back. What agents run of it ends; one that is not taken back ends by itself."""
        if self._items:
            try:
                await self._write(None)
            except StorageError as error:
                logger.info("broadcast_not_taken_back", extra={"error": str(error)})

    def _in_flight(self) -> list[Entry]:
        return self._ordering

    async def run(self) -> None:
        tracker = self._context.tracker
        while True:
            await self._wake.wait()
            await asyncio.sleep(_GATHERING)
            self._wake.clear()
            items: list[bytes] = []
            while tracker.outbox:
                taken = tracker.take(Pack({}, 1, 0.0))
                self._ordering += taken[0]
                items += taken[1]
            if items:
                await self._order(items)
            self._ordering = []
            self._outcomes.room.notify()

    async def _order(self, items: list[bytes]) -> None:
        """Write the order until the store takes it, or refuses it for good."""
        entries, backoff = self._ordering, Backoff()
        self._items += [(entry.task_id, item) for entry, item in zip(entries, items, strict=True)]
        order = order_of(self._context.incarnation, self._expires_at, self._items)
        while True:
            try:
                await self._write(order)
            except StorageError as error:
                if not error.retryable:
                    for entry in entries:
                        self._outcomes.resolve(entry, submit_failed_result(entry, str(error)))
                    self._outcomes.change.notify()
                    return
                self._context.notices.warn(f"the broadcast is not ordered yet, trying again: {error}")
                await backoff.wait()
            else:
                self._outcomes.accepted(entries)
                return

    async def _write(self, order: BroadcastOrder | None) -> None:
        """Put the order in the place of the session's former one; None: only remove that."""
        ctl, holder = self._context.runtime.ctl, self._context.incarnation
        while True:
            etag: str | None = None
            found = Broadcasts()
            try:
                blob = await ctl.get(layout.BROADCAST_BLOB)
                etag, found = blob.etag, Broadcasts.decode(blob.data)
            except BlobNotFound:
                if order is None:
                    return
            except ProtocolError as error:
                logger.warning("broadcasts_unreadable", extra={"error": str(error)})
            orders = found.without(holder, time.time())
            document = Broadcasts(orders if order is None else (*orders, order))
            try:
                await ctl.put(layout.BROADCAST_BLOB, document.encode(), create=etag is None, if_match=etag)
            except (BlobConflict, BlobNotFound):
                continue  # another client has written it meanwhile
            return
