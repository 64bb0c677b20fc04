"""Uploads the agent's log to a blob, so that it can be read when the node is gone."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Final

from batchflow.errors import StorageError
from batchflow.support.cadence import sleep_until_turn

if TYPE_CHECKING:
    from batchflow.ports.storage import Container

INTERVAL: Final = 5.0
"""Seconds between two appends."""
MOST_BYTES: Final = 256 * 1024
"""Maximum bytes of waiting lines. Beyond it the oldest lines are dropped."""
MOST_APPENDS: Final = 40_000
"""Maximum number of appends to one blob. Azure's limit is 50,000. Then a new blob is started."""


class LogUploader(logging.Handler):
    """Collects lines, and appends them to a blob while `run` runs."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._dropped = 0
        self._appends = 0

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record).encode(errors="replace") + b"\n"
        self._lines.append(line)
        self._size += len(line)
        while self._size > MOST_BYTES and len(self._lines) > 1:
            self._size -= len(self._lines.popleft())
            self._dropped += 1

    async def run(self, out: Container, name: str) -> None:
        """Append new lines until cancelled. Lines that cannot be appended wait for the next time."""
        while True:
            await sleep_until_turn(INTERVAL)
            await self.flush_to(out, name)

    async def flush_to(self, out: Container, name: str) -> None:
        """Append the waiting lines. If cancelled, they are appended the next time, possibly twice."""
        if not self._lines:
            return
        lines, dropped = list(self._lines), self._dropped
        self._lines.clear()
        self._size = self._dropped = 0
        note = b'{"event":"lines_dropped","lines":%d}\n' % dropped if dropped else b""
        try:
            await out.append(self._part(name), note + b"".join(lines))
        except StorageError:
            self._put_back(lines, dropped)
        except BaseException:
            self._put_back(lines, dropped)
            raise

    def _part(self, name: str) -> str:
        part = self._appends // MOST_APPENDS
        self._appends += 1
        return f"{name.removesuffix('.log')}.{part}.log" if part else name

    def _put_back(self, lines: list[bytes], dropped: int) -> None:
        self._lines.extendleft(reversed(lines))
        self._size += sum(map(len, lines))
        self._dropped += dropped
