"""A file without a name: only an open descriptor, so its space is free when the agent ends."""

from __future__ import annotations

import errno
import os
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Final

_PIECE: Final = 2**30

Signature = tuple[int, int, int]


class StoredFile:
    """A file without a name, which lasts as long as this object."""

    def __init__(self, path: Path) -> None:
        """Take over a file: its name is removed. Raises OSError."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        weakref.finalize(self, os.close, descriptor)
        path.unlink()
        self._descriptor = descriptor
        self._signature = _signature(descriptor)
        self.size: int = self._signature[0]

    def is_intact(self) -> bool:
        """Return whether it is as it was taken over."""
        return _signature(self._descriptor) == self._signature

    def copy_to(self, target: str) -> None:
        """Copy it to a new file. Raises OSError, also when it was changed."""
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            self._write_to(writer)
        finally:
            os.close(writer)
        if not self.is_intact():
            raise OSError(errno.EIO, "a file of another task was changed on this node")

    def _write_to(self, writer: int) -> None:
        done = 0
        with suppress(OSError):  # file systems that cannot share or move blocks: the kernel copies bytes
            while count := os.copy_file_range(self._descriptor, writer, _PIECE, done):
                done += count
        while count := os.sendfile(writer, self._descriptor, done, _PIECE):
            done += count


def _signature(descriptor: int) -> Signature:
    found = os.fstat(descriptor)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns
