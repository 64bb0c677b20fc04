"""The record of what an agent has used of its node, which outlives its heartbeats."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from batchflow.errors import StorageError
from batchflow.protocol import documents, layout
from node_agent.control.heartbeat import node_id

if TYPE_CHECKING:
    from batchflow.ports.storage import Container

logger = logging.getLogger(__name__)

_INTERVAL: Final = 60.0
"""Seconds between two records. Heartbeats have newer figures, and are kept for a day."""
_TIMEOUT: Final = 20.0


def is_dedicated() -> bool:
    """Tell whether the node is a dedicated one; outside of Batch it is."""
    return os.environ.get("AZ_BATCH_NODE_IS_DEDICATED", "true").lower() != "false"


class UsageWriter:
    """Writes the records."""

    def __init__(self, out: Container, agent: str, usage: Callable[[], documents.Usage]) -> None:
        self._out = out
        self._agent = agent
        self._usage = usage

    async def run(self) -> None:
        """Write a record each minute until cancelled. A failed one is dropped: the next one has it all."""
        while True:
            await asyncio.sleep(_INTERVAL)
            await self.write()

    async def write(self) -> None:
        """Write a record now."""
        record = documents.UsageRecord(self._agent, node_id(), self._usage())
        try:
            async with asyncio.timeout(_TIMEOUT):
                await self._out.put(layout.usage_blob(self._agent), record.encode())
        except (StorageError, TimeoutError) as error:
            logger.warning("usage_not_written", extra={"error": str(error)})
