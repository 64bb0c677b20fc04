"""Opens and closes objects that work in the background.

A `Supervised` object has one asyncio task, its supervisor, in which everything that it holds open lives and
ends: task groups, links, processes. Opening and closing only signal that task, so they may happen in
different asyncio tasks: two notebook cells, a fixture's two halves, a service's startup and shutdown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Self

from batchflow.errors import BatchflowError, SessionClosed
from batchflow.support.affinity import LoopAffinity
from batchflow.support.closing import Closes
from batchflow.support.event_log import event_logger
from batchflow.support.task_groups import first_error

logger = event_logger(__name__)


class Supervised(Closes):
    """An object that `async with` or `await` opens, and leaving it or `aclose` closes."""

    close_timeout: float = 10.0
    """Maximum number of seconds for closing before the supervisor is cancelled."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._affinity = LoopAffinity(name)
        self._supervisor: asyncio.Task[None] | None = None
        self._opened: asyncio.Future[None] | None = None
        self._closing = asyncio.Event()
        self._failure: BaseException | None = None

    async def _serve(self) -> None:
        """Open everything, call `_ready`, work until `_closing` is set, close everything."""
        raise NotImplementedError

    def _ready(self) -> None:
        """Mark the object as open. `_serve` calls this."""
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(None)

    @property
    def closed(self) -> bool:
        return self._closing.is_set() or (self._supervisor is not None and self._supervisor.done())

    async def _open(self) -> Self:
        """Open. Idempotent. If cancelled, it undoes what it began. A closed object does not open again."""
        self._affinity.check()
        if self._supervisor is None and not self._closing.is_set():
            self._affinity.bind()
            self._opened = asyncio.get_running_loop().create_future()
            self._supervisor = asyncio.create_task(self._supervise(self._opened), name=self._name)
        if self._opened is not None:
            try:
                await asyncio.shield(self._opened)
            except asyncio.CancelledError:
                if not self._opened.done():
                    await self.aclose()
                raise
        if self.closed:
            raise SessionClosed("it was closed and does not open again: make another")
        return self

    async def _supervise(self, opened: asyncio.Future[None]) -> None:
        error: BaseException = SessionClosed("it was closed while it was opening")
        try:
            await self._serve()
        except Exception as failure:
            error = first_error(failure)
            if opened.done():
                self._failure = error
                logger.warning("ended_by_failure", extra={"what": self._name, "error": str(error)})
        finally:
            self._closing.set()
            if not opened.done():
                opened.set_exception(error)
                opened.exception()  # marks it as retrieved, for the opener may be gone

    async def aclose(self) -> None:
        """Close. Idempotent; after `close_timeout` the rest is dropped. If cancelled, closing continues.

        Raises the error that ended the object before, or `BatchflowError` when something had to be dropped;
        `WrongEventLoop` in another event loop than that of the opening. In a forked child it does nothing,
        because what is open belongs to the parent.
        """
        task = self._supervisor
        if self._affinity.is_forked:
            return
        if task is not None and not task.done():
            self._affinity.check()
        self._closing.set()
        if task is None or task is asyncio.current_task():
            return
        if self._opened is not None and not self._opened.done():
            task.cancel()
        await asyncio.wait([task], timeout=self.close_timeout)
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=self.close_timeout)
            late = f"{self._name} did not close within {self.close_timeout} s: the rest was dropped"
            self._failure = self._failure or BatchflowError(late)
        if self._failure is not None:
            raise self._failure

    def __await__(self) -> Generator[object, None, Self]:
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        return await self._open()
