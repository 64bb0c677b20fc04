"""Wishes: how many agents each client wants, until when. Clients agree by them without a master. Pure.

Every client sees the same documents, so its wish is for the whole pool. The greatest of the living wishes
counts, not their sum. A wish that is not renewed ends, so a dead client wants nothing after some minutes.
"""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Final

from batchflow.pools.scaling.values import ScalingMemory
from batchflow.protocol.documents import Document
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable

WISH_SECONDS: Final = 300.0
"""How long a wish lives that is not renewed: an evaluation of Batch, by which its agents are counted."""
MOST_WISH_SECONDS: Final = 3600.0
"""How long a wish lives at most, whatever its document says."""
MOST_SKEW: Final = 300.0
"""Seconds that the clock of a wish's writer may be ahead. A wish from further ahead is not counted."""


@frozen
class Wish(Document):
    """The number of agents that one client wants in the pool, until it ends."""

    who: str
    """The client: unique, and the same in all its wishes."""
    agents: int
    written_at: float
    until: float
    """Seconds since the epoch."""
    dedicated: int = 0
    """How many of them have dedicated nodes at least."""
    why: str = ""
    memory: ScalingMemory = field(default_factory=ScalingMemory)
    """What the client's next decision needs, or that of another client that goes on."""
    surplus: int = 0
    """How many of the agents may drain; 0 in wishes of versions that let none."""

    @property
    def needed(self) -> int:
        """Return how many agents are wanted when those have left that may drain."""
        return max(0, self.agents - self.surplus)

    @property
    def asks_for(self) -> tuple[int, int, int]:
        """Return the numbers by which two wishes differ for those who carry them out."""
        return self.agents, self.dedicated, self.surplus

    def lives_at(self, now: float) -> bool:
        """Return whether the wish counts at a time."""
        if self.written_at > now + MOST_SKEW:
            return False
        return now < min(self.until, self.written_at + MOST_WISH_SECONDS)

    @property
    def ends_at(self) -> float:
        """Return when the wish ends by itself."""
        return min(self.until, self.written_at + MOST_WISH_SECONDS)


@frozen
class MergedWish:
    """What all clients together want now."""

    agents: int = 0
    dedicated: int = 0
    until: float = 0.0
    """When this ends, if no wish is renewed: the last of those that want as many."""
    why: str = ""
    memory: ScalingMemory = field(default_factory=ScalingMemory)
    """The newest memory of any wish, ended ones too: how a client that comes now goes on."""
    needed: int = 0
    """How many agents every client can do with, once those have left that all would let drain."""

    @property
    def spot(self) -> int:
        return self.agents - self.dedicated


def merge(wishes: Iterable[Wish], now: float) -> MergedWish:
    """Make one wish of all. The order and repetitions do not matter; of one client the newest wish counts."""
    newest: dict[str, Wish] = {}
    for wish in wishes:
        known = newest.get(wish.who)
        if wish.written_at <= now + MOST_SKEW and (known is None or _order(wish) > _order(known)):
            newest[wish.who] = wish
    if not newest:
        return MergedWish()
    last = max(newest.values(), key=_order)
    living = [wish for wish in newest.values() if wish.lives_at(now)]
    if not living:
        return MergedWish(memory=last.memory)
    agents = max(0, *(wish.agents for wish in living))
    largest = max(
        (wish for wish in living if wish.agents >= agents), key=lambda wish: wish.ends_at, default=last
    )
    return MergedWish(
        agents=agents,
        dedicated=max(0, min(agents, max(wish.dedicated for wish in living))),
        until=largest.ends_at,
        why=largest.why,
        memory=last.memory,
        needed=max(wish.needed for wish in living),
    )


def _order(wish: Wish) -> tuple[float, float, str, int, int, int]:
    return wish.written_at, wish.until, wish.who, wish.agents, wish.dedicated, wish.surplus
