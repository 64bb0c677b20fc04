"""The last bytes of a stream. A core: bytes in, text out.

Invariant: a tail holds at most twice its limit.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


class Tail:
    """The last bytes of a stream."""

    __slots__ = ("_buffer", "limit", "size")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        """Bytes seen."""
        self._buffer = bytearray()

    def add(self, data: bytes) -> None:
        self.size += len(data)
        self._buffer += data
        if len(self._buffer) > 2 * self.limit:
            del self._buffer[: len(self._buffer) - self.limit]

    @property
    def complete(self) -> bool:
        """Whether the tail holds the whole stream."""
        return self.size <= self.limit

    def text(self, limit: int | None = None) -> str:
        """Return at most `limit` bytes of UTF-8. If bytes were left out, the first line says how many."""
        limit = self.limit if limit is None else min(limit, self.limit)
        if self.size <= limit:
            return self._buffer.decode("utf-8", "replace")
        kept = max(0, limit - len(_left_out(self.size)))
        data = self._buffer[len(self._buffer) - kept :].lstrip(_CONTINUATION)
        return _left_out(self.size - kept) + data.decode("utf-8", "replace")


_CONTINUATION: Final = bytes(range(0x80, 0xC0))


def _left_out(count: int) -> str:
    return f"[{count} bytes left out]\n"
