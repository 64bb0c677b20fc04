"""Simulated time: what happens when, processes that do one thing at a time, credits that run out."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Timeline:
    """What happens, in order."""

    now: float = 0.0
    happened: int = 0
    _heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = field(default_factory=list)
    _count: int = 0

    def at(self, when: float, what: Callable[..., None], *arguments: Any) -> None:
        """Do it then."""
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, what, arguments))

    def after(self, delay: float, what: Callable[..., None], *arguments: Any) -> None:
        self.at(self.now + delay, what, *arguments)

    def run(self, until: Callable[[], bool], limit: float = float("inf")) -> None:
        """Until the condition holds, nothing happens any more, or so many seconds have passed."""
        while self._heap and not until():
            when, _, what, arguments = heapq.heappop(self._heap)
            if when > limit:
                return
            self.now = when
            self.happened += 1
            what(*arguments)


@dataclass(slots=True)
class Processor:
    """A process of one thread: what it is given waits until what it had before is done."""

    free_at: float = 0.0
    used: float = 0.0

    def work(self, now: float, seconds: float) -> float:
        """When it is done."""
        self.free_at = max(self.free_at, now) + seconds
        self.used += seconds
        return self.free_at


@dataclass(slots=True)
class Credits:
    """A namespace's allowance. Who finds none is served when there are some again, in turn.

    The service refuses such requests with "wait 2 seconds" and clients try again; that the work is done at
    the rate of the credits, and no faster, comes to the same.
    """

    rate: float
    burst: float
    used: int = 0
    _next: float = 0.0

    def spend(self, now: float, count: int = 1) -> float:
        """When so many have been granted."""
        self.used += count
        if self.rate == float("inf"):
            return now
        self._next = max(self._next, now - self.burst) + count / self.rate
        return max(now, self._next)
