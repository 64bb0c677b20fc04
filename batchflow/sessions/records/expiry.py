"""Ends the tasks of a session that have not begun in time.

What the broker does not have yet ends here. What waits in a queue is dead-lettered by the broker, and what an
agent holds is ended by that agent, so that each outcome has one source. The session looks into the dead
letters when a task's time is over, if it has the right to.
"""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

from batchflow.model import Status
from batchflow.sessions.records.tracker import expired_result

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batchflow.sessions.records.outcomes import Outcomes
    from batchflow.sessions.records.tracker import Entry

_LOOKS: Final = (0.2, 5.0)
"""Seconds between two looks into the dead letters: the least and the most. Each pause is twice the last."""


class ExpiryWatch:
    """The tasks of one session that expire."""

    def __init__(self, outcomes: Outcomes, look: Callable[[], Awaitable[None]]) -> None:
        """`look` turns the dead letters of tasks into results."""
        self._outcomes = outcomes
        self._look = look
        self._moments: list[tuple[float, int, Entry]] = []
        """A heap. Tasks that have ended stay until their moment."""
        self._late: list[Entry] = []
        """Tasks whose time is over, and that the broker has or may have."""
        self._wake = asyncio.Event()

    def add(self, entry: Entry) -> None:
        """Watch a task, if it expires."""
        if entry.begin_by is not None:
            heappush(self._moments, (entry.begin_by, entry.sequence, entry))
            if self._moments[0][2] is entry:
                self._wake.set()

    async def run(self) -> None:
        """End tasks when their time is over, until cancelled."""
        clock = asyncio.get_running_loop().time
        pause, next_look = _LOOKS[0], 0.0
        while True:
            self._wake.clear()
            if self._end_what_is_here(clock()):
                pause, next_look = _LOOKS[0], clock() + _LOOKS[0]
            self._late = [each for each in self._late if not (each.done or each.status is Status.RUNNING)]
            if self._late and clock() >= next_look:
                await self._look()
                pause = min(2 * pause, _LOOKS[1])
                next_look = clock() + pause
            moments = [self._moments[0][0]] if self._moments else []
            if self._late:
                moments.append(next_look)
            try:
                async with asyncio.timeout_at(min(moments, default=None)):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _end_what_is_here(self, now: float) -> bool:
        """End what the broker does not have. Return whether the time of other tasks is over."""
        found = ended = False
        while self._moments and self._moments[0][0] <= now:
            entry = heappop(self._moments)[2]
            if entry.done:
                continue
            if entry.item is not None or entry.status is Status.WAITING:
                ended |= self._outcomes.resolve(entry, expired_result(entry))
            else:
                self._late.append(entry)
                found = True
        if ended:
            self._outcomes.change.notify()
        return found
