"""Hands the same server-sent events to all watchers of a pool. A slow watcher begins anew."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final

import orjson

_MOST_PENDING: Final = 4 * 1024 * 1024
"""Bytes that wait for one watcher, whose browser may stand still."""
KEEP_ALIVE: Final = 15.0
"""Seconds without an event after which a comment is sent, so that a dead connection is found."""


def event(document: Any) -> bytes:
    """Return a document as a server-sent event."""
    return b"data: " + orjson.dumps(document, default=str) + b"\n\n"


class _Watcher:
    def __init__(self) -> None:
        self.pending: deque[bytes] = deque()
        self.size = 0
        self.lost = True
        """Whether it needs everything from the beginning."""
        self.wake = asyncio.Event()


class Hub:
    """The watchers of one pool."""

    def __init__(self, snapshot: Callable[[], Iterable[bytes]]) -> None:
        """`snapshot` returns the events that tell everything as it is now."""
        self._snapshot = snapshot
        self._watchers: set[_Watcher] = set()
        self.closed: bool = False

    def __len__(self) -> int:
        return len(self._watchers)

    def send(self, data: bytes) -> None:
        """Send an event to all watchers; encoded once."""
        for watcher in self._watchers:
            if watcher.lost:
                continue
            watcher.pending.append(data)
            watcher.size += len(data)
            if watcher.size > _MOST_PENDING:
                watcher.pending.clear()
                watcher.size, watcher.lost = 0, True
            watcher.wake.set()

    async def watch(self) -> AsyncIterator[bytes]:
        """Iterate over what a new watcher is to be sent. Ends when the hub is closed."""
        watcher = _Watcher()
        self._watchers.add(watcher)
        try:
            yield b"retry: 1000\n\n"
            while not self.closed:
                if watcher.lost:
                    watcher.lost = False
                    for data in list(self._snapshot()):
                        yield data
                while watcher.pending:
                    data = watcher.pending.popleft()
                    watcher.size -= len(data)
                    yield data
                if not watcher.lost and not watcher.pending and not self.closed:
                    watcher.wake.clear()
                    try:
                        await asyncio.wait_for(watcher.wake.wait(), KEEP_ALIVE)
                    except TimeoutError:
                        yield b": here\n\n"
        finally:
            self._watchers.discard(watcher)

    def close(self) -> None:
        """End all watchers."""
        self.closed = True
        for watcher in self._watchers:
            watcher.wake.set()
