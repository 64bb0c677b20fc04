"""What the sessions of a client have learned of one pool, and the work that they have under way there.

A session alone packs by what it knows: it spreads its tasks over the slots while these have little to do, and
sends the first tasks of an unknown command one by one. Of a hundred sessions each would do so beside the
others, with messages of a few tasks. So they learn together, and know of each other's work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from batchflow.protocol.durations import Durations

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchflow.protocol.packing import PackingPolicy

_MOST_BUNDLES: Final = 64
"""Bundles whose durations are remembered."""


class PoolLoad:
    """The open sessions of a client in one pool, as far as they matter to how tasks are packed."""

    def __init__(self) -> None:
        self._members: dict[PackingPolicy, Callable[[], int]] = {}
        self._durations: dict[str, Durations] = {}
        self._round_trip: float | None = None

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
