"""How much of its node an agent has used: the time that its slots were busy. Pure: no clock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class BusyTime:
    """Adds up the time in which the slots of an agent were busy."""

    slots: int
    at: float
    """Up to when the time is counted, by the monotonic clock."""
    seconds: float = 0.0
    """Node-seconds: each slot's second is its share of the node's."""

    def advance(self, now: float, busy: int) -> None:
        """Count the time until `now`, in which so many slots were busy."""
        if now > self.at:
            self.seconds += (now - self.at) * busy / self.slots
            self.at = now
