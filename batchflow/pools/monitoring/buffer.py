"""Rows that wait to be sent: bounded, in batches of one request, and counted where they are dropped. Pure.

Invariant: each row that was added is in a batch that was taken by the service, or waits, or is counted as
dropped. A row is in one batch at a time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

MOST_BYTES: Final = 8 * 1024**2
"""Bytes of all rows that wait. Then new rows are dropped."""
BATCH_BYTES: Final = 900 * 1024
"""Bytes of the rows of a request. The service takes 1 MB, compressed or not."""
BATCH_ROWS: Final = 5_000
LONGEST_TEXT: Final = 8_000
"""Characters of a text in a row. The service cuts them at 32 KB."""

Row = dict[str, Any]


@dataclass(slots=True)
class RowBatch:
    """Rows of one stream for one request."""

    stream: str
    rows: list[tuple[Row, int]]
    """With the bytes of each."""


@dataclass(slots=True)
class RowBuffer:
    """The rows that wait, by stream."""

    most_bytes: int = MOST_BYTES
    batch_bytes: int = BATCH_BYTES
    """Bytes of the rows of a request, as far as it has more than one."""
    dropped: int = 0
    """Rows that were dropped since `take_dropped`."""
    size: int = 0
    """Bytes of what waits, and of what is being sent."""
    _waiting: dict[str, deque[tuple[Row, int]]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return how many rows wait, without those of batches that were taken."""
        return sum(map(len, self._waiting.values()))

    def add(self, stream: str, row: Row) -> None:
        """Let a row wait; dropped when there is no room."""
        size = len(orjson.dumps(row, default=str)) + 1
        if size > BATCH_BYTES or self.size + size > self.most_bytes:
            self.dropped += 1
            return
        self.size += size
        self._waiting.setdefault(stream, deque()).append((row, size))

    def take(self) -> RowBatch | None:
        """Take the rows of the next request; None when nothing waits."""
        stream = max(self._waiting, key=lambda name: len(self._waiting[name]), default=None)
        if stream is None:
            return None
        waiting = self._waiting[stream]
        rows = [waiting.popleft()]
        size = rows[0][1]
        while waiting and len(rows) < BATCH_ROWS and size + waiting[0][1] <= self.batch_bytes:
            rows.append(waiting.popleft())
            size += rows[-1][1]
        if not waiting:
            del self._waiting[stream]
        return RowBatch(stream, rows)

    def taken(self, batch: RowBatch) -> None:
        """Note that the service has the rows."""
        self.size -= sum(size for _, size in batch.rows)

    def put_back(self, batch: RowBatch) -> None:
        """Let the rows of a batch wait again, in their place."""
        self._waiting.setdefault(batch.stream, deque()).extendleft(reversed(batch.rows))

    def too_large(self, batch: RowBatch) -> None:
        """Let the rows wait again, to be sent in smaller requests; drop a lone row, which cannot be."""
        if len(batch.rows) == 1:
            self.drop(batch)
            return
        self.batch_bytes = sum(size for _, size in batch.rows) // 2
        self.put_back(batch)

    def drop(self, batch: RowBatch) -> None:
        """Drop a batch that the service never takes."""
        self.taken(batch)
        self.dropped += len(batch.rows)

    def drop_all(self) -> None:
        """Drop what waits."""
        while (batch := self.take()) is not None:
            self.drop(batch)

    def take_dropped(self) -> int:
        """Return how many rows were dropped since the last call."""
        dropped, self.dropped = self.dropped, 0
        return dropped


def cut(text: str | None) -> str | None:
    """Return a text as a row has it."""
    return None if text is None else text[:LONGEST_TEXT].encode("utf-8", "replace").decode()
