"""Files on a node's disk: copying them, and seeing cheaply whether something was changed.

Each prepared file or folder gets one fixed time of modification, long past. Any write to the
file, and any entry added to, removed from or renamed in the folder, makes the kernel set another one. So a
look at one number for each tells all, even for changes within one tick of the kernel's clock, where two
times taken by the clock would be equal.

A program can put the time of modification back. It cannot do so with the time of the inode's last change,
which the kernel sets. So the *signature* of a file holds that time as well. It is taken when the clock has
gone on, and before the content is read: what changes the file later gives it another signature.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from stat import S_ISDIR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_PIECE = 2**30
_MOST_OPEN = 64
"""Maximum number of descriptors of one watch. A process may commonly have 1,024."""
STAMP_NS = 1_000_000_000 * 10**9
"""The time of modification of all stamped files, in nanoseconds since the epoch: 9 September 2001."""


Signature = tuple[int, int, int, int, int]
_COARSE_CLOCK: Final = 5
"""CLOCK_REALTIME_COARSE, by which the kernel sets the times of files."""
_TICKS: Final = 50
"""Pauses of a millisecond in which the kernel's clock goes on, by far."""


def signature(path: str) -> Signature | None:
    """Return what changes with every change of a file: of its content, its times or its mode; None when the
    file is gone."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_size, found.st_mode, found.st_mtime_ns, found.st_ctime_ns


QUICK: Final = 200
"""Files that are looked at in less than a millisecond. For more, a look belongs into a thread."""


def differ(signatures: dict[str, Signature | None]) -> bool:
    """Tell whether one of these files is not as its signature says."""
    return any(signature(path) != found for path, found in signatures.items())


def let_clock_go_on(paths: list[str]) -> None:
    """Return when later changes of these files have later times than they have now."""
    latest = max((os.lstat(path).st_ctime_ns for path in paths), default=0)
    for _ in range(_TICKS):
        if time.clock_gettime_ns(_COARSE_CLOCK) > latest:
            return
        time.sleep(0.001)


def stamp(path: str) -> None:
    """Give a file or a folder the fixed time of modification."""
    os.utime(path, ns=(STAMP_NS, STAMP_NS))


def touched(paths: list[str]) -> bool:
    """Tell whether any of these was changed, or is gone."""
    try:
        for path in paths:
            if os.lstat(path).st_mtime_ns != STAMP_NS:
                return True
    except (FileNotFoundError, NotADirectoryError):
        return True
    return False


def holds(path: str, size: int, sha256: str) -> bool:
    """Tell whether a file exists and has the content of that size and hash."""
    import hashlib  # this late, because Python children import this module and have no need of it

    try:
        with open(path, "rb") as content:
            if os.fstat(content.fileno()).st_size != size:
                return False
            return hashlib.file_digest(content, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return False


class Watch:
    """Checks the stamps of a directory and its content by open descriptors, for a check after every task.

    A descriptor needs no walk along a path, which is three times as fast. A name that was removed or replaced
    shows in the time of its folder. The directory itself is in no folder of ours, so its path is checked.
    """

    def __init__(self, directory: str, others: list[str]) -> None:
        self._directory = directory
        self._opened, self._others = others[:_MOST_OPEN], others[_MOST_OPEN:]
        self._descriptors: list[int] = []
        self._changed: list[int] = []
        """When the inodes of files were changed last, in nanoseconds; 0 for folders, which are stamped."""

    def touched(self) -> bool:
        """Tell whether anything was changed, or is gone. If so, the next call looks at the restored files."""
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
            for descriptor, changed in zip(self._descriptors, self._changed, strict=True):
                found = os.fstat(descriptor)
                if found.st_mtime_ns != STAMP_NS or not found.st_nlink:
                    return False
                if changed and found.st_ctime_ns != changed:
                    return False
        except OSError:
            return False
        return not touched([self._directory, *self._others])

    def _open(self) -> None:
        self._changed = []
        for path in self._opened:
            self._descriptors.append(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
            found = os.fstat(self._descriptors[-1])
            self._changed.append(0 if S_ISDIR(found.st_mode) else found.st_ctime_ns)


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
