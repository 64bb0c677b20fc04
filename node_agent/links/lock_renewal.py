"""Renews the locks of all messages that the agent holds, each in a task of its own."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio

from batchflow.errors import BrokerError, LeaseLost
from node_agent.links.lock_deadlines import LockDeadlines

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

logger = logging.getLogger(__name__)


class LockRenewal:
    """Renews locks, by the number of their delivery, until they are removed."""

    def __init__(
        self,
        lock_duration: float,
        *,
        renew: Callable[[int], Awaitable[None]],
        lost: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`renew` raises `LeaseLost`, another `BrokerError` or TimeoutError."""
        self._duration = lock_duration
        self._renew = renew
        self._lost = lost
        self._clock = clock
        self._deadlines: LockDeadlines[int] = LockDeadlines()
        self._earlier = asyncio.Event()
        """There is something to do before `_until`."""
        self._until = math.inf

    def add(self, delivery: int) -> None:
        """Renew the lock of this delivery from now on."""
        self._deadlines.add(delivery, self._duration, self._clock())
        if self._until == math.inf:
            self._earlier.set()

    def remove(self, delivery: int) -> None:
        """Stop renewing a delivery that was settled or given up."""
        self._deadlines.remove(delivery)

    def __contains__(self, delivery: int) -> bool:
        return delivery in self._deadlines

    async def run(self) -> None:
        """Renew the locks that are due, until cancelled."""
        async with anyio.create_task_group() as jobs:
            while True:
                self._earlier.clear()
                deadline = self._deadlines.next_deadline()
                self._until = math.inf if deadline is None else deadline
                with anyio.move_on_after(self._until - self._clock()):
                    await self._earlier.wait()
                self._look(jobs)

    def _look(self, jobs: TaskGroup) -> None:
        now = self._clock()
        for delivery in self._deadlines.lapsed(now):
            self._gone(delivery, "its lock ran out")
        for delivery in self._deadlines.due(now):
            jobs.start_soon(self._renew_one, delivery)

    async def _renew_one(self, delivery: int) -> None:
        if delivery not in self._deadlines:
            return  # settled since it was found due
        asked_at = self._clock()
        try:
            await self._renew(delivery)
        except LeaseLost as error:
            if delivery in self._deadlines:
                self._deadlines.remove(delivery)
                self._gone(delivery, str(error))
        except (BrokerError, TimeoutError) as error:
            logger.warning("renewal_failed", extra={"delivery": delivery, "error": str(error)})
            self._deadlines.failed(delivery, self._clock())
            self._earlier.set()
        else:
            self._deadlines.renewed(delivery, asked_at)
            self._earlier.set()

    def _gone(self, delivery: int, error: str) -> None:
        logger.warning("lease_lost", extra={"delivery": delivery, "error": error})
        self._lost(delivery)
