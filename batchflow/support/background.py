"""Background jobs of a session, which it starts and does not await."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Background:
    """Jobs that end with their session. A job's failure is reported, and ends no other job."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._jobs = set[asyncio.Task[Any]]()
        self._last = set[asyncio.Task[Any]]()

    def start(self, work: Coroutine[Any, Any, None], name: str, *, last: bool = False) -> asyncio.Task[None]:
        """Start a job. `last`: closing waits for it, for a bounded time."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._jobs.add(task)
        if last:
            self._last.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._jobs.discard(task)
        self._last.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._tell(f"{task.get_name()}: {error}")

    def cancel(self) -> None:
        """Cancel all jobs but the last ones."""
        for task in self._jobs - self._last:
            task.cancel()

    async def finish(self) -> None:
        """Wait for the last jobs."""
        if self._last:
            await asyncio.wait(self._last)

    async def aclose(self) -> None:
        """Cancel all jobs."""
        for task in self._jobs:
            task.cancel()
        if self._jobs:
            await asyncio.wait(self._jobs)
