"""Appends what the agent's slots did to the pool's record, which any client can read."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from batchflow.errors import StorageError
from batchflow.model import Status
from batchflow.protocol import activity
from batchflow.support.cadence import sleep_until_turn
from node_agent.control.activity_record import ActivityRecord
from node_agent.control.heartbeat import host_name, node_id

if TYPE_CHECKING:
    from batchflow.ports.storage import Container

logger = logging.getLogger(__name__)

_LEAST_INTERVAL: Final = 1.0
_TIMEOUT: Final = 20.0


class ActivityWriter:
    """Writes the record with the heartbeats, one request for each interval in which a task ended."""

    def __init__(
        self, out: Container, agent: str, interval: float, *, clock: Callable[[], float] = time.time
    ) -> None:
        """`interval`: seconds between two heartbeats."""
        self._out = out
        self._agent = agent
        self._interval = max(_LEAST_INTERVAL, interval)
        self._clock = clock
        self._segment: int | None = None
        """The number of the segment that was written last."""
        self._number = 0
        self.record: ActivityRecord = ActivityRecord(self._interval)

    async def run(self) -> None:
        """Write until cancelled. What cannot be written is dropped and counted."""
        while True:
            await sleep_until_turn(self._interval)
            await self.write()

    async def write(self) -> None:
        """Write what has ended since the last call; nothing when no task has."""
        if not self.record:
            return
        now = self._clock()
        segment = activity.segment(now)
        counts, runs = self.record.take()
        line = activity.encode(
            activity.ActivityBatch(
                agent=self._agent,
                node=node_id(),
                host=host_name(),
                number=self._number,
                at=round(now, 3),
                ended=sum(counts.values()),
                failed=counts[Status.FAILED],
                cancelled=counts[Status.CANCELLED],
                runs=runs,
            )
        )
        try:
            async with asyncio.timeout(_TIMEOUT):
                name = activity.segment_blob(self._agent, now)
                await self._out.append(name, line, anew=segment != self._segment)
        except (StorageError, TimeoutError) as error:
            self.record.give_back(counts)
            logger.warning("activity_not_written", extra={"error": str(error)})
        else:
            self._segment = segment
            self._number += 1
