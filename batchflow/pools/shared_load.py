"""What the sessions of a client have learned of one pool, and the work that they have under way there.

A session alone packs by what it knows: it spreads its tasks over the slots while these have little to do, and
sends the first tasks of an unknown command one by one. Of a hundred sessions each would do so beside the
others, with messages of a few tasks. So they learn together, and know of each other's work.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from batchflow.protocol.durations import Durations

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchflow.protocol.packing import PackingPolicy

_MOST_BUNDLES: Final = 64
"""Bundles whose durations are remembered."""
_AT_ONCE: Final = 8
"""Sessions that submit many tasks at the same time."""
_LONGEST_TURN: Final = 0.2
"""Seconds after which another session submits as well, although a turn has not ended: it may wait."""


class PoolLoad:
    """The open sessions of a client in one pool, as far as they matter to how tasks are packed."""

    def __init__(self) -> None:
        self._members: dict[PackingPolicy, Callable[[], int]] = {}
        self._durations: dict[str, Durations] = {}
        self._round_trip: float | None = None
        self.submitting: SubmitTurns = SubmitTurns()
        """Turns of sessions that submit many tasks: each fills its messages before the next one begins."""
        self.lanes: dict[str, int] = {}
        """The lanes of the client's open sessions, by their mailboxes."""

    def join(self, policy: PackingPolicy, queued: Callable[[], int]) -> None:
        """Add a session. `queued`: returns how many tasks the broker has that have no outcome."""
        self._members[policy] = queued

    def leave(self, policy: PackingPolicy) -> None:
        """Remove a session. Idempotent."""
        self._members.pop(policy, None)

    def use_bundle(self, policy: PackingPolicy, bundle: str) -> None:
        """Share the durations of a bundle's commands, from now on, with the other sessions that use it.

        Nothing is known of a new bundle's commands. They are taken for as long as the session's earlier ones.
        """
        known = self._durations.pop(bundle, None)
        policy.durations = known or Durations(dict(policy.durations.means), overall=policy.durations.overall)
        self._durations[bundle] = policy.durations
        if len(self._durations) > _MOST_BUNDLES:
            del self._durations[next(iter(self._durations))]

    @property
    def task_seconds(self) -> float | None:
        """Return how long the tasks of the sessions' commands take, on average; None: none has ended yet."""
        means = {id(policy.durations): policy.durations.means for policy in self._members}
        seen = [seconds for each in means.values() for seconds in each.values()]
        return sum(seen) / len(seen) if seen else None

    def inform(self, policy: PackingPolicy) -> None:
        """Tell a session what the others know and have under way. Called before it makes packs."""
        if len(self._members) < 2:
            policy.elsewhere = 0.0
            return
        policy.elsewhere = sum(
            queued() * other.durations.overall
            for other, queued in self._members.items()
            if other is not policy
        )
        self._round_trip = self._round_trip if policy.round_trip is None else policy.round_trip
        policy.round_trip = self._round_trip


class SubmitTurns:
    """Which sessions submit many tasks now, and which wait for that. Of one event loop."""

    def __init__(self, at_once: int = _AT_ONCE) -> None:
        self._at_once = at_once
        self._ends: dict[object, asyncio.TimerHandle] = {}
        """When the turns that go on end."""
        self._waiting: deque[tuple[object, asyncio.Future[None]]] = deque()

    async def take(self, who: object) -> None:
        """End a turn, and return when the next one comes: at once where few want one. Safe to cancel."""
        self.leave(who)
        if len(self._ends) < self._at_once:
            self._begin(who)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((who, turn))
        try:
            await turn
        except asyncio.CancelledError:
            self.leave(who)
            raise

    def leave(self, who: object) -> None:
        """End a turn, so that another begins. Idempotent."""
        if (end := self._ends.pop(who, None)) is None:
            return
        end.cancel()
        while self._waiting:
            following, turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._begin(following)
                return

    def _begin(self, who: object) -> None:
        self._ends[who] = asyncio.get_running_loop().call_later(_LONGEST_TURN, self.leave, who)
