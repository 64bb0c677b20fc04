"""Unread outcomes, on disk instead of in memory."""

from __future__ import annotations

import tempfile
import weakref
from typing import IO

from batchflow.protocol import wire
from batchflow.protocol.wire import ResultItem
from batchflow.support.frozen import frozen


class SpillFile:
    """A temporary file without a name. It ends with the last reference to it or to an outcome in it.

    Reads and writes are short and sequential, in the page cache, and so are made in place.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._size = 0

    def write(self, outcome: ResultItem) -> SpilledOutcome:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="batchflow-")  # noqa: SIM115 - closed by `finalize`
            weakref.finalize(self, self._file.close)
        data = wire.join("results", [wire.encode(outcome)])
        self._file.seek(self._size)
        self._file.write(data)
        spilled = SpilledOutcome(self, self._size, len(data))
        self._size += len(data)
        return spilled

    def read(self, offset: int, size: int) -> bytes:
        assert self._file is not None
        self._file.seek(offset)
        return self._file.read(size)


@frozen
class SpilledOutcome:
    """The place of an outcome in a spill file."""

    file: SpillFile
    offset: int
    size: int

    def read(self) -> ResultItem:
        (outcome,) = wire.decode(self.file.read(self.offset, self.size))
        assert isinstance(outcome, ResultItem)
        return outcome
