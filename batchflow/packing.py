"""How many tasks share a message: a pure policy.

A message costs the sender, the broker and the agent far more than a small task does, so tasks that come fast
ride together. Rules:

- A task whose command has no known duration rides alone, and so does one that takes longer than the work
  that a pack may hold.
- Tasks that share a pack are at most `WORK` seconds of expected work together, whatever their commands, at
  most `MOST_TASKS` and at most `MOST_BYTES` bytes. A single task makes a pack, however large.
- What waits is spread over the slots that could take it: no slot idles while a pack holds the last tasks.
- Nothing waits for company: the policy is asked when the link is free, and takes from what is there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

WORK: Final = 0.03
"""Seconds of expected work in a pack, at most."""
MOST_TASKS: Final = 100
MOST_BYTES: Final = 200_000
"""Below Service Bus's 256 KB in the Standard tier, with room for its own headers."""

_WEIGHT: Final = 0.2
"""Of a newly seen duration in the running mean."""
_LEAST_DURATION: Final = 1e-4
"""Seconds: what any task costs its agent."""
_ROUNDING: Final = 1 + 1e-9
"""Thirty durations of a thirtieth are not more than the whole."""


@dataclass(slots=True)
class PackingPolicy:
    """What was learned of the commands, and the decision made from it."""

    slots: int = 1
    """Places for running tasks, over all agents that are known."""
    durations: dict[str, float] = field(default_factory=dict)
    """Seconds, by command: a running mean."""

    def seen(self, command: str, duration: float) -> None:
        """A task of this command took so many seconds."""
        mean = self.durations.get(command)
        duration = max(duration, _LEAST_DURATION)
        self.durations[command] = duration if mean is None else mean + _WEIGHT * (duration - mean)

    def room(self, command: str, waiting: int) -> int:
        """How many tasks of this command may share a message now; `waiting`: how many there are in all."""
        duration = self.durations.get(command)
        if duration is None or duration > WORK:
            return 1
        return max(1, min(int(WORK / duration * _ROUNDING), MOST_TASKS, self._share(waiting)))

    def pack(self, waiting: int) -> Pack:
        """A message to be filled now; `waiting`: how many tasks there are in all."""
        return Pack(self.durations, min(MOST_TASKS, max(1, self._share(waiting))))

    def _share(self, waiting: int) -> int:
        return -(-waiting // max(1, self.slots))


@dataclass(slots=True)
class Pack:
    """A message that is being filled, task by task."""

    durations: Mapping[str, float]
    most: int
    """Tasks."""
    count: int = 0
    work: float = 0.0
    size: int = 0

    def admits(self, command: str, size: int) -> bool:
        """Whether the next task may ride along: if so, it does. `size`: its bytes. The first always may."""
        work = self.work + self.durations.get(command, math.inf)
        if self.count and (
            self.count >= self.most or work > WORK * _ROUNDING or self.size + size > MOST_BYTES
        ):
            return False
        self.count += 1
        self.work = work
        self.size += size
        return True
