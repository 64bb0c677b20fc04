"""An estimate of how far the node's clock is ahead of the broker's, taken from messages.

A message cannot arrive before it was enqueued, so the node's clock is ahead by at most the shortest time that
any message seemed to take. Fresh messages make that tight, old ones leave it wide.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class BrokerClock:
    """The smallest difference seen between the node's clock and the broker's."""

    now: Callable[[], float] = time.time
    ahead: float | None = None
    """Seconds that the node's clock is ahead of the broker's, at most. None: nothing was seen yet."""

    def seen(self, enqueued_at: float) -> None:
        """Learn from a message that was enqueued then and has just arrived."""
        difference = self.now() - enqueued_at
        if self.ahead is None or difference < self.ahead:
            self.ahead = difference

    def age(self, enqueued_at: float) -> float:
        """Return the seconds since then, at least 0. Where the clocks differ it is rather too much."""
        return max(0.0, self.broker_time(self.now()) - enqueued_at)

    def age_at_lock(self, enqueued_at: float, locked_until: float | None, lock_duration: float) -> float:
        """Return how many seconds old a message was, by the broker's clock, when that locked it.

        The end of the lock tells the broker's time then. Where it is not known, `age` stands in.
        """
        age = self.age(enqueued_at)
        if locked_until is None:
            return age
        return min(age, max(0.0, locked_until - lock_duration - enqueued_at))

    def broker_time(self, at: float) -> float:
        """Return the broker's time: later than ours where ours is certainly behind, else the same."""
        return at if self.ahead is None else at - min(0.0, self.ahead)
