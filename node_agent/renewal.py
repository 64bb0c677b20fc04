"""The renewal of all locks: one book, one timer, each renewal a job of its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio

from batchflow.errors import BrokerError, LeaseLost
from batchflow.leases import LeaseBook

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

logger = logging.getLogger(__name__)


class Renewals:
    """Keeps locks, by the number of their delivery."""

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
        self._book: LeaseBook[int] = LeaseBook()
        self._filled = asyncio.Event()

    def add(self, delivery: int) -> None:
        """Its lock is ours from now on."""
        self._book.add(delivery, self._duration, self._clock())
        self._filled.set()

    def remove(self, delivery: int) -> None:
        """It was settled, or given up."""
        self._book.remove(delivery)

    def __contains__(self, delivery: int) -> bool:
        return delivery in self._book

    async def run(self) -> None:
        """Renew what is due, for ever."""
        async with anyio.create_task_group() as jobs:
            while True:
                deadline = self._book.next_deadline()
                if deadline is None:
                    self._filled.clear()
                    await self._filled.wait()
                else:
                    await anyio.sleep(max(0.0, deadline - self._clock()))
                    self._look(jobs)

    def _look(self, jobs: TaskGroup) -> None:
        now = self._clock()
        for delivery in self._book.lapsed(now):
            self._gone(delivery, "its lock ran out")
        for delivery in self._book.due(now):
            jobs.start_soon(self._renew_one, delivery)

    async def _renew_one(self, delivery: int) -> None:
        asked_at = self._clock()
        try:
            await self._renew(delivery)
        except LeaseLost as error:
            if delivery in self._book:
                self._book.remove(delivery)
                self._gone(delivery, str(error))
        except (BrokerError, TimeoutError) as error:
            logger.warning("renewal_failed", extra={"delivery": delivery, "error": str(error)})
            self._book.failed(delivery, self._clock())
        else:
            self._book.renewed(delivery, asked_at)

    def _gone(self, delivery: int, error: str) -> None:
        logger.warning("lease_lost", extra={"delivery": delivery, "error": error})
        self._lost(delivery)
