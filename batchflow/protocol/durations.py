"""How long the tasks of each command take, learned from those that have ended. Pure.

Client and agent both keep such means: the client to pack tasks, the agent to place them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

LEAST_DURATION: Final = 1e-4
"""Seconds: what any task costs its agent."""
WEIGHT: Final = 0.2
"""Weight of a newly seen duration in the running mean."""

_LONGER_WEIGHT: Final = 0.1
"""The same where it is longer than the mean: durations are by the clock, and a part of it may have been the
machine's load."""
_JUMP: Final = 4.0
"""Times the mean: more is taken for this much, so that one task that met a busy machine does not count as
many, while a command that has become slow is known for it after a few."""


@dataclass(slots=True)
class Durations:
    """A running mean for each command, in which longer durations weigh less."""

    means: dict[str, float] = field(default_factory=dict)
    """Seconds, by command."""
    overall: float = 0.0
    """Seconds that tasks of whatever command take, as the owner of the durations counts them."""
    probes: dict[str, int] = field(default_factory=dict)
    """How many tasks of an unknown command were packed, by command."""

    def seen(self, command: str, duration: float) -> None:
        """Note that a task of this command took so many seconds."""
        duration = max(duration, LEAST_DURATION)
        mean = self.means.get(command)
        if mean is None:
            self.means[command] = duration
        else:
            weight = _LONGER_WEIGHT if duration > mean else WEIGHT
            self.means[command] = mean + weight * (min(duration, _JUMP * mean) - mean)

    def expected(self, command: str) -> float:
        """Return the seconds that a task of this command takes; infinite where it has not been seen."""
        return self.means.get(command, math.inf)
