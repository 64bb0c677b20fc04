"""How far the node's clock is from the broker's, as far as messages tell.

A message cannot arrive before it was enqueued, so the node's clock is ahead by at most the shortest time that
any message seemed to take. Fresh messages make that tight, old ones leave it wide.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class BrokerClock:
    """What was seen of the broker's clock."""

    now: Callable[[], float] = time.time
    ahead: float | None = None
    """Seconds that the node's clock is ahead of the broker's, at most. None: nothing was seen yet."""

    def seen(self, enqueued_at: float) -> None:
        """A message that was enqueued then has just arrived."""
        difference = self.now() - enqueued_at
        if self.ahead is None or difference < self.ahead:
            self.ahead = difference

    def age(self, enqueued_at: float) -> float:
        """Seconds since then, at least 0. Too much rather than too little, where the clocks are known."""
        return max(0.0, self.broker_time(self.now()) - enqueued_at)

    def broker_time(self, at: float) -> float:
        """What the broker's clock shows: later than ours where ours is surely behind, else the same."""
        return at if self.ahead is None else at - min(0.0, self.ahead)
