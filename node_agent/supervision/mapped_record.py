"""A record in a file that is mapped into memory: written without a system call, and there after a kill."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Final, Self

from node_agent.system.plain_log import say

_LOGGER: Final = "node_agent.supervision.mapped_record"


class MappedRecord:
    """An empty record of a fixed size. Where it cannot be written, it is kept in memory alone."""

    def __init__(self, path: Path, size: int, *, lost: str) -> None:
        """Create the file, in the place of an earlier one. `size`: bytes. `lost`: the event of a failure."""
        try:
            self._map = _mapped(path, size)
        except OSError as error:
            say("WARNING", _LOGGER, lost, path=str(path), error=str(error))
            self._map = mmap.mmap(-1, size)

    def close(self) -> None:
        """Unmap the file, which stays."""
        self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _mapped(path: Path, size: int) -> mmap.mmap:
    """Create a file and map it. Its blocks are reserved, because a write to a mapping for which the disk has
    no room ends the process (SIGBUS)."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
        return mmap.mmap(descriptor, size)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
