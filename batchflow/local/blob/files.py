"""The files in which the local Blob service keeps content: one per blob and one per staged block.

Plain blocking calls; the server runs them in threads. A file is written once under its own name, and only
append blobs grow afterwards, so that a reader who has a file open is never disturbed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

from batchflow.local.blob.core.model import FileRange

CHUNK = 1024 * 1024


class BlobFiles:
    """Files in one directory, which is created when missing. Raises OSError when the disk refuses."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._numbers = count(1)
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def new_name(self) -> str:
        """Return a name that no file has had."""
        return f"{next(self._numbers):08x}"

    def append(self, file: str, data: bytes) -> None:
        """Write at the end of a file, creating it when missing."""
        with (self._root / file).open("ab", buffering=0) as stream:
            _write_all(stream.fileno(), data)

    def write_at(self, file: str, offset: int, data: bytes) -> None:
        """Write into an existing file at `offset`; FileNotFoundError when it has been removed."""
        descriptor = os.open(self._root / file, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, offset)
            os.lseek(descriptor, offset, os.SEEK_SET)
            _write_all(descriptor, data)
        finally:
            os.close(descriptor)

    def join(self, file: str, sources: Iterable[FileRange]) -> None:
        """Write a new file out of pieces of others; FileNotFoundError when one has been removed."""
        with (self._root / file).open("wb", buffering=0) as stream:
            for source in sources:
                for data in self.read(source.file, source.offset, source.size):
                    _write_all(stream.fileno(), data)

    def open(self, file: str) -> int:
        """Open a file for reading and return its descriptor; FileNotFoundError when it has been removed."""
        return os.open(self._root / file, os.O_RDONLY)

    def read(self, file: str, offset: int, size: int) -> Iterator[bytes]:
        """Read a piece of a file, in chunks."""
        descriptor = self.open(file)
        try:
            for start in range(offset, offset + size, CHUNK):
                yield os.pread(descriptor, min(CHUNK, offset + size - start), start)
        finally:
            os.close(descriptor)

    def remove(self, files: Iterable[str]) -> None:
        """Remove files; one that is gone already is no error."""
        for file in files:
            (self._root / file).unlink(missing_ok=True)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
