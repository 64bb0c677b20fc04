"""Waits for one task, or for any change in a session."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchflow.errors import BatchflowError


class ChangeNotifier:
    """Wakes all waiters of this moment."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            raise

    def notify(self) -> None:
        if not self._waiters:
            return
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class Waiters:
    """The waiters for single tasks, by the task's number."""

    __slots__ = ("_futures",)

    def __init__(self) -> None:
        self._futures: dict[int, list[asyncio.Future[None]]] = {}

    async def wait(self, number: int) -> None:
        """Wait until the task is woken, or raise its error. Safe to cancel; other waiters continue."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._futures.setdefault(number, []).append(future)
        try:
            await future
        except asyncio.CancelledError:
            self._forget(number, future)
            raise

    def _forget(self, number: int, future: asyncio.Future[None]) -> None:
        futures = self._futures.get(number, [])
        if future in futures:
            futures.remove(future)
            if not futures:
                del self._futures[number]

    def wake(self, number: int) -> None:
        for future in self._futures.pop(number, ()):
            if not future.done():
                future.set_result(None)

    def fail(self, error: BatchflowError) -> None:
        """Raise the error in all waiters."""
        for futures in self._futures.values():
            for future in futures:
                if not future.done():
                    future.set_exception(error)
                    future.exception()  # marks it as retrieved, for a waiter may be gone
        self._futures.clear()
