"""What a task prints, as it comes: read without making it wait, cut into lines for its session.

`Lines` is a core: bytes in, text out, memory bounded whatever comes, for a line under way is at most
`LONGEST_LINE`. `Pipe` is the shell: a non-blocking descriptor that is read whenever something is there.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_LINE: Final = 8 * 1024
_READ_SIZE: Final = 64 * 1024
_PIPE_SIZE: Final = 64 * 1024


class Lines:
    """Cuts a stream into lines as they come; an overlong one into pieces."""

    __slots__ = ("_open",)

    def __init__(self) -> None:
        self._open = b""

    def add(self, data: bytes) -> list[str]:
        """Return the lines that are whole now."""
        *whole, self._open = (self._open + data).split(b"\n")
        while len(self._open) > LONGEST_LINE:
            whole.append(self._open[:LONGEST_LINE])
            self._open = self._open[LONGEST_LINE:]
        return [_line(line) for line in whole]

    def finish(self) -> list[str]:
        """Return the last line, when no newline ended it."""
        rest, self._open = self._open, b""
        return [_line(rest)] if rest else []


def _line(data: bytes) -> str:
    return data[:LONGEST_LINE].removesuffix(b"\r").decode("utf-8", "replace")


class Pipe:
    """The reading end of a pipe that a program writes to.

    `sink` gets what is read, in the event loop, a bounded piece at a time: a program that prints without end
    takes turns with everything else. `before` is called before what came by itself is read.
    """

    def __init__(self, sink: Callable[[bytes], None], before: Callable[[], None] | None = None) -> None:
        self._sink = sink
        self._before = before
        self._loop = asyncio.get_running_loop()
        self._fd, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._fd, False)
        self._loop.add_reader(self._fd, self._arrived)

    def close_writer(self) -> None:
        """Close our copy of the writing end: the program has its own by now."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def drain(self) -> None:
        """Take in all that was written before this call."""
        left = _PIPE_SIZE
        while left > 0 and (count := self._read()):
            left -= count

    def close(self) -> None:
        self.close_writer()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _arrived(self) -> None:
        if self._before is not None:
            self._before()
        self._read()

    def _read(self) -> int:
        if self._fd < 0:
            return 0
        with suppress(BlockingIOError):
            if data := os.read(self._fd, _READ_SIZE):
                self._sink(data)
                return len(data)
            self._loop.remove_reader(self._fd)
        return 0
