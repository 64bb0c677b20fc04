"""Which of its task queues an agent listens to: one after the other while they are busy, else all of them.

An agent that listened to all its queues at once would get a message from each when a slot becomes free, hold
all but one of them without having begun, and have to hand them back. Rules:

- Nothing is listened to while nothing is wanted.
- Busy queues take turns: one of them is listened to at a moment, and the turn passes on with each message.
- A queue that gave nothing for `PATIENCE` seconds of its turn is quiet, and so is every queue at first.
  Quiet queues are all listened to beside the one whose turn it is: it is not known when they will have
  something. One that gives a message is busy again.

Invariants: a queue is either busy or quiet; with one queue there is nothing to decide and no deadline.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

PATIENCE: Final = 0.2
"""Seconds. Several round trips: a busy queue's next message comes sooner."""


@dataclass(slots=True)
class QueueRotation:
    """Queues are known by their index."""

    count: int
    _busy: deque[int] = field(default_factory=deque)
    """In the order of their turns; the first one has it."""
    _quiet: set[int] = field(init=False)
    _wanted: bool = False
    _turn_ends: float | None = None
    """Only while the turn is being used."""

    def __post_init__(self) -> None:
        self._quiet = set(range(self.count))

    def listening(self) -> frozenset[int]:
        """Return the queues to listen to now."""
        if not self._wanted:
            return frozenset()
        return frozenset({*self._quiet, *list(self._busy)[:1]})

    def want(self, wanted: bool, now: float) -> None:
        """Note whether messages are wanted from now on."""
        if wanted != self._wanted:
            self._wanted = wanted
            self._begin_turn(now)

    def arrived(self, queue: int, now: float) -> None:
        """Note that a message came from this queue."""
        if queue in self._quiet:
            self._quiet.discard(queue)
        else:
            self._busy.remove(queue)
        self._busy.append(queue)
        self._begin_turn(now)

    def advance(self, now: float) -> None:
        """Pass the turn on, when the deadline has come."""
        if self._turn_ends is not None and now >= self._turn_ends:
            self._quiet.add(self._busy.popleft())
            self._begin_turn(now)

    def next_deadline(self) -> float | None:
        """Return when the turn of a queue that gives nothing ends."""
        return self._turn_ends

    def _begin_turn(self, now: float) -> None:
        used = self._wanted and bool(self._busy) and self.count > 1
        self._turn_ends = now + PATIENCE if used else None
