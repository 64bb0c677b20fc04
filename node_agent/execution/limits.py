"""The limits of one running task: time, resident memory of all its processes, and their number."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from batchflow.support.frozen import frozen
from node_agent.system import process_groups

if TYPE_CHECKING:
    from node_agent.execution.slot_processes import SlotProcesses

LOOK_INTERVAL: Final = 0.05
"""Seconds between two looks at the memory of a task that has a limit."""


@frozen
class Expired:
    """The task's time is up."""

    used: float
    """Seconds."""


@frozen
class TooMuch:
    """The task's processes hold more memory than they may."""

    used: int
    """Bytes."""


@frozen
class TooMany:
    """The task has more processes and threads than it may."""

    used: int


class Limits:
    """Resolves a future with the limit that is reached, when that comes before anything else."""

    def __init__(
        self, processes: SlotProcesses, waiter: asyncio.Future[Any], timeout: float | None, memory: int | None
    ) -> None:
        self._processes = processes
        self._waiter = waiter
        self._loop = asyncio.get_running_loop()
        self._begun = self._loop.time()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        if timeout is not None:
            self._timers["time"] = self._loop.call_later(timeout, self._expire)
        if memory is not None:
            self._look(memory)

    def used(self) -> float:
        """Return the seconds since the start."""
        return self._loop.time() - self._begun

    def stop(self) -> None:
        """Watch no longer, for the task is over."""
        for timer in self._timers.values():
            timer.cancel()

    def too_many(self, used: int) -> None:
        """End the task, whose processes and threads were counted by `ProcessLimiter`."""
        self._resolve(TooMany(used))

    def _expire(self) -> None:
        self._resolve(Expired(self.used()))

    def _look(self, memory: int) -> None:
        used = process_groups.resident(self._processes.family())
        if used > memory:
            self._resolve(TooMuch(used))
        else:
            self._timers["memory"] = self._loop.call_later(LOOK_INTERVAL, self._look, memory)

    def _resolve(self, end: Expired | TooMuch | TooMany) -> None:
        if not self._waiter.done():
            self._waiter.set_result(end)
