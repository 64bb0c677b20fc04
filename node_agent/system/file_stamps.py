"""Files on a node's disk: copying them, and seeing cheaply whether something was changed.

Whatever is prepared (a file, a folder) gets one fixed time of modification, long past. Any write to the
file, and any entry added to, removed from or renamed in the folder, makes the kernel set another one. So a
look at one number for each tells all, even for changes within one tick of the kernel's clock, where two
times taken by the clock would be equal.
"""

from __future__ import annotations

import os
from contextlib import suppress

_PIECE = 2**30
_MOST_OPEN = 64
"""Descriptors of one watch, of the 1,024 that a process may commonly have."""
STAMP_NS = 1_000_000_000 * 10**9
"""9 September 2001, as nanoseconds since the epoch."""


def stamp(path: str) -> None:
    """Mark a file or a folder as it is now."""
    os.utime(path, ns=(STAMP_NS, STAMP_NS))


def touched(paths: list[str]) -> bool:
    """Whether any of them was changed, or is gone."""
    try:
        for path in paths:
            if os.lstat(path).st_mtime_ns != STAMP_NS:
                return True
    except (FileNotFoundError, NotADirectoryError):
        return True
    return False


class Watch:
    """The same look at a directory and what is in it, for one that looks after every task.

    What is open is found without a walk along its path: that is three times as fast. A name that is removed,
    or stands for something else since, tells by the time of the folder that it is in; for the directory
    itself, which lies in none of ours, the path is asked.
    """

    def __init__(self, directory: str, others: list[str]) -> None:
        self._directory = directory
        self._opened, self._others = others[:_MOST_OPEN], others[_MOST_OPEN:]
        self._descriptors: list[int] = []

    def touched(self) -> bool:
        """Whether anything was changed, or is gone. What is put in order after that is looked at anew."""
        if self._is_as_it_was():
            return False
        self.close()
        return True

    def close(self) -> None:
        descriptors, self._descriptors = self._descriptors, []
        for descriptor in descriptors:
            with suppress(OSError):
                os.close(descriptor)

    def _is_as_it_was(self) -> bool:
        try:
            if not self._descriptors:
                self._open()
            for descriptor in self._descriptors:
                found = os.fstat(descriptor)
                if found.st_mtime_ns != STAMP_NS or not found.st_nlink:
                    return False
        except OSError:
            return False
        return not touched([self._directory, *self._others])

    def _open(self) -> None:
        for path in self._opened:
            self._descriptors.append(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))


def copy(source: str, target: str) -> None:
    """Copy a file's content, by the kernel; file systems that can share the blocks do so until a write."""
    with open(source, "rb") as reader, open(target, "wb") as writer:
        try:
            while os.copy_file_range(reader.fileno(), writer.fileno(), _PIECE):
                pass
        except OSError:
            writer.truncate(0)
            os.lseek(reader.fileno(), 0, os.SEEK_SET)
            os.lseek(writer.fileno(), 0, os.SEEK_SET)
            while os.sendfile(writer.fileno(), reader.fileno(), None, _PIECE):
                pass
