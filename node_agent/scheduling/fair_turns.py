"""Which lanes an agent listens to, so that each gets its share of the agent's slots. Pure.

A lane is a task queue of a pool that shares its slots fairly. What a lane's tasks take of the slots, in
seconds divided by the weight of the lane, moves its virtual time on. The busy lane that is furthest behind
has the turn. Rules:

- A message counts by the seconds that its tasks are expected to take, until they have ended and their real
  ones are known. So what counts is time in slots, not the number of tasks.
- A lane that had nothing begins at the virtual time of the lane that has the turn: nothing is saved up.
- The lane that has the turn is listened to, and the next one as well when it gave nothing for longer than a
  message takes, and so on: slots do not wait for a lane that has run dry.
- A lane that gave nothing while a later one did, or for `PATIENCE` seconds, is quiet, and so is every lane at
  first. Quiet lanes are all listened to: it is not known when they will have something.
- Lanes of interactive tasks are listened to before their turn, also while nothing else is wanted (`express`),
  as long as they have not had more than their share.

Invariant: a busy lane's virtual time is at least that of the lane that had the turn when it became busy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from batchflow.protocol.lanes import rank, weight
from node_agent.scheduling.queue_rotation import PATIENCE

STEP: Final = 0.01
"""Seconds after which the next lane is listened to as well, at least: twice what a message takes is more."""
_WEIGHT: Final = 0.2
"""Of the latest message in what one takes."""
SLACK: Final = 0.5
"""Seconds of slot time that an interactive lane may be ahead of the others and still be listened to first."""


@dataclass(slots=True)
class FairTurns:
    """The lanes of an agent, known by their index. `lanes`: their priorities."""

    lanes: Sequence[str]
    ranks: Sequence[int] = field(init=False)
    """What is lower goes first, for each lane."""
    _weights: list[float] = field(init=False)
    _used: list[float] = field(init=False)
    """Virtual times."""
    _busy: set[int] = field(default_factory=set)
    _now: float = 0.0
    """The virtual time of the lane that had the turn last."""
    _wanted: bool = False
    _express: bool = False
    _since: float = 0.0
    """When the turn began."""
    _width: int = 1
    """How many busy lanes are listened to."""
    _took: float = 0.0
    """Seconds that the next message of a busy lane takes."""

    def __post_init__(self) -> None:
        self.ranks = [rank(each) for each in self.lanes]
        self._weights = [weight(each) for each in self.lanes]
        self._used = [0.0] * len(self.lanes)

    def listening(self) -> frozenset[int]:
        """Return the lanes to listen to now."""
        first = {lane for lane, each in enumerate(self.ranks) if each == 0 and self._is_entitled(lane)}
        if not self._wanted:
            return frozenset(first) if self._express else frozenset()
        quiet = set(range(len(self.lanes))) - self._busy
        return frozenset(first | quiet | set(self._order()[: self._width]))

    def want(self, wanted: bool, now: float, *, express: bool = False) -> None:
        """Note whether messages are wanted from now on; `express`: those of interactive lanes, at least."""
        self._express = express
        if wanted != self._wanted:
            self._wanted = wanted
            self._begin_turn(now)

    def arrived(self, lane: int, now: float) -> None:
        """Note that a message came from this lane."""
        order = self._order()
        for place, each in enumerate(order[: self._width]):
            if self._wanted and each != lane and now >= self._since + (place + 1) * self._step:
                self._busy.discard(each)
        if order and lane == order[0] and self._wanted:
            self._took += _WEIGHT * (now - self._since - self._took)
        if lane not in self._busy:
            self._used[lane] = max(self._used[lane], self._now)
            self._busy.add(lane)
        self._now = max(self._now, self._used[self._order()[0]])
        self._begin_turn(now)

    def charge(self, lane: int, seconds: float) -> None:
        """Count slot time for a lane; negative where less was taken than was counted."""
        self._used[lane] += seconds / self._weights[lane]

    def used(self, lane: int) -> float:
        """Return the virtual time of a lane."""
        return self._used[lane]

    def advance(self, now: float) -> None:
        """Listen to more lanes, and let what gave nothing be quiet, when the deadline has come."""
        if self._wanted and self._busy and now >= self._since + PATIENCE:
            self._busy.discard(self._order()[0])
            self._begin_turn(now)
        elif self._wanted and now >= self._since + self._step * self._width:
            self._width += 1

    def next_deadline(self) -> float | None:
        """Return when `advance` has something to do."""
        if not self._wanted or not self._busy:
            return None
        if self._width < len(self._busy):
            return self._since + min(self._step * self._width, PATIENCE)
        return self._since + PATIENCE

    @property
    def _step(self) -> float:
        """Seconds after which the next lane is listened to as well."""
        return min(PATIENCE, max(STEP, 2 * self._took))

    def _order(self) -> list[int]:
        """Return the busy lanes in the order of their turns."""
        return sorted(self._busy, key=lambda lane: (self._used[lane], lane))

    def _is_entitled(self, lane: int) -> bool:
        """Return whether a lane has not had much more than its share."""
        if lane not in self._busy:
            return True
        others = [self._used[each] for each in self._busy if each != lane]
        return not others or self._used[lane] <= min(others) + SLACK / self._weights[lane]

    def _begin_turn(self, now: float) -> None:
        self._since, self._width = now, 1
