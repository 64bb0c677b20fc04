"""Which Python workers a slot keeps for sessions whose tasks do not run just now. Pure: no process, no clock.

Rules: one worker for each key. The least recently kept one goes first when there are more than the limit, or
when they hold more memory than the limit together. A worker that is above the limit alone is not kept.
"""

from __future__ import annotations

from typing import Generic, TypeVar

Key = tuple[str, ...]
"""What the tasks of a worker have in common: their session. More may be added, such as an environment."""
W = TypeVar("W")


class WarmWorkers(Generic[W]):
    """The workers of one slot, by key."""

    def __init__(self, memory: int, most: int) -> None:
        """`memory`: bytes that they may hold together; `most`: how many there may be."""
        self._memory = memory
        self._most = most
        self._kept: dict[Key, tuple[W, int]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, key: Key) -> W | None:
        """Return the worker of a key, which is kept no longer; None when there is none."""
        found = self._kept.pop(key, None)
        return None if found is None else found[0]

    def keep(self, key: Key, worker: W, memory: int) -> list[W]:
        """Keep a worker that holds so many bytes; return those that are kept no longer."""
        self._kept[key] = (worker, memory)
        gone = []
        while len(self._kept) > self._most or sum(held for _, held in self._kept.values()) > self._memory:
            gone.append(self._kept.pop(next(iter(self._kept)))[0])
        return gone

    def take_all(self) -> list[W]:
        """Keep none any longer; return those that were kept."""
        gone = [worker for worker, _ in self._kept.values()]
        self._kept.clear()
        return gone
