"""How often something may happen, such as the lines of a task that its session is told. Pure.

Invariant: over any span of t seconds a rate lets at most burst + t * per_second events through, and counts
the others.
"""

from __future__ import annotations


class Rate:
    """A bucket of permissions, full at first."""

    __slots__ = ("_at", "_burst", "_left", "_per_second", "dropped")

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = burst
        self._left = float(burst)
        self._at: float | None = None
        self.dropped = 0
        """Events refused so far."""

    def allows(self, now: float) -> bool:
        """Take a permission; return whether there was one. `now`: seconds of a monotonic clock."""
        if self._at is not None:
            self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            self.dropped += 1
            return False
        self._left -= 1
        return True
