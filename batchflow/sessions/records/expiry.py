"""Ends the tasks of a session that have not begun in time.

What the broker does not have yet ends here. What waits in a queue is dead-lettered by the broker, and what an
agent holds is ended by that agent, so that each outcome has one source. The session looks into the dead
letters when a task's time is over, if it has the right to.
"""

from __future__ import annotations

import asyncio
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final

from batchflow.model import Status
from batchflow.sessions.records.tracker import expired_result

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batchflow.sessions.records.outcomes import Outcomes
    from batchflow.sessions.records.tracker import Entry, Tracker

_LOOKS: Final = (0.2, 5.0)
"""Seconds between two looks into the dead letters: the least and the most. Each pause is twice the last."""
_MOST_ENDED: Final = 1024
"""Tasks that have ended of which moments are kept, beside as many as there are tasks without an outcome."""


class ExpiryWatch:
    """The tasks of one session that expire."""

    def __init__(self, tracker: Tracker, outcomes: Outcomes, look: Callable[[], Awaitable[None]]) -> None:
        """`look` turns the dead letters of tasks into results."""
        self._tracker = tracker
        self._outcomes = outcomes
        self._look = look
        self._moments: list[tuple[float, int]] = []
        """A heap of moments and the numbers of tasks, some of which have ended."""
        self._late: list[Entry] = []
        """Tasks whose time is over, and that the broker has or may have."""
        self._wake = asyncio.Event()

    def add(self, entry: Entry) -> None:
        """Watch a task that the tracker has, if it expires."""
        if entry.begin_by is None:
            return
        if len(self._moments) > 2 * len(self._tracker) + _MOST_ENDED:
            self._moments = [each for each in self._moments if self._tracker.find(each[1]) is not None]
            heapify(self._moments)
        heappush(self._moments, (entry.begin_by, entry.sequence))
        if self._moments[0][1] == entry.sequence:
            self._wake.set()

    def __len__(self) -> int:
        """Return how many moments are kept."""
        return len(self._moments)

    async def run(self) -> None:
        """End tasks when their time is over, until cancelled."""
        clock = asyncio.get_running_loop().time
        pause, next_look = _LOOKS[0], 0.0
        while True:
            self._wake.clear()
            had_late = bool(self._late)
            if self._end_what_is_here(clock()):
                pause, soon = _LOOKS[0], clock() + _LOOKS[0]
                next_look = min(next_look, soon) if had_late else soon
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
            entry = self._tracker.find(heappop(self._moments)[1])
            if entry is None:
                continue
            if entry.item is not None or entry.status is Status.WAITING:
                ended |= self._outcomes.resolve(entry, expired_result(entry))
            else:
                self._late.append(entry)
                found = True
        if ended:
            self._outcomes.change.notify()
        return found
