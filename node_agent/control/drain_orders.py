"""Watches the document that orders agents to drain."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from batchflow.errors import BlobNotFound, ProtocolError, StorageError
from batchflow.protocol.documents import DrainOrder
from batchflow.protocol.layout import DRAIN_BLOB
from batchflow.support.cadence import sleep_until_turn
from node_agent.control.heartbeat import node_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchflow.ports.storage import Container

logger = logging.getLogger(__name__)


class DrainWatcher:
    """Looks for an order that means this agent, once every `interval` seconds."""

    def __init__(self, ctl: Container, agent: str, interval: float, drain: Callable[[float], None]) -> None:
        """`agent`: its incarnation."""
        self._agent = agent
        self._ctl = ctl
        self._interval = interval
        self._drain = drain
        self._etag: str | None = None
        self._job = os.environ.get("AZ_BATCH_JOB_ID")

    async def run(self) -> None:
        """Watch until cancelled. A failed read is tried again; an order that cannot be decoded is skipped."""
        while True:
            await sleep_until_turn(self._interval)
            try:
                order = await self._look()
            except BlobNotFound:
                continue
            except (StorageError, ProtocolError) as error:
                logger.warning("orders_unread", extra={"error": str(error)})
                continue
            if order is not None and self._concerns_us(order):
                self._drain(order.grace)

    async def _look(self) -> DrainOrder | None:
        """Return an order that was not seen before, if there is one."""
        blob = await self._ctl.get_if_changed(DRAIN_BLOB, self._etag)
        if blob is None:
            return None
        self._etag = blob.etag
        return DrainOrder.decode(blob.data)

    def _concerns_us(self, order: DrainOrder) -> bool:
        return (
            order.job == self._job
            and (not order.nodes or node_id() in order.nodes)
            and (not order.agents or self._agent in order.agents)
        )
