"""The parts of a queue: sessions with their messages, kinds of timers, ids of past messages."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

from batchflow.local.queues.model import Place

if TYPE_CHECKING:
    from collections.abc import Hashable

    from batchflow.local.queues.model import Message


class TimerKind(IntEnum):
    """The kind of a deadline in the timer heap; at the same instant the lower comes first."""

    SCHEDULE = 0
    SESSION_LOCK = 1
    LOCK = 2
    EXPIRY = 3


@dataclass(slots=True, eq=False)
class SessionQueue:
    """The messages of one session, or of a queue without sessions, in order."""

    session_id: str | None = None
    heap: list[tuple[int, Message]] = field(default_factory=list)
    count: int = 0
    tokens: set[bytes] = field(default_factory=set)
    holder: Hashable = None
    locked_until: float = 0.0
    state: bytes | None = None
    state_updated_at: float = 0.0

    def push(self, message: Message) -> None:
        message.place = Place.READY
        heapq.heappush(self.heap, (message.number, message))

    def head(self) -> Message | None:
        """Return the first ready message. What expired while it waited is dropped here."""
        heap = self.heap
        while heap:
            message = heap[0][1]
            if message.place is Place.READY:
                return message
            heapq.heappop(heap)
        return None

    @property
    def empty(self) -> bool:
        return not self.count and self.holder is None and self.state is None


class DuplicateHistory:
    """The message ids of the last while, each with the number of the message that brought it."""

    __slots__ = ("_numbers", "_order")

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._order: deque[tuple[float, str]] = deque()

    def remember(self, message_id: str, number: int, now: float) -> int | None:
        """Note an id, or return the number of the message that brought it before."""
        known = self._numbers.get(message_id)
        if known is None:
            self._numbers[message_id] = number
            self._order.append((now, message_id))
        return known

    def forget(self, until: float) -> None:
        """Drop what was noted until then."""
        order = self._order
        while order and order[0][0] <= until:
            del self._numbers[order.popleft()[1]]
