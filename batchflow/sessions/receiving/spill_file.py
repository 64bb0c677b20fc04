"""Unread outcomes, on disk instead of in memory."""

from __future__ import annotations

import tempfile
import weakref
from dataclasses import replace
from typing import IO

from batchflow.protocol import wire
from batchflow.protocol.values.received import ReceivedValue, ValueReader
from batchflow.protocol.wire import ResultItem
from batchflow.support.frozen import frozen


class SpillFile:
    """A temporary file without a name. It ends with the last reference to it or to an outcome in it.

    Reads and writes are short and sequential, in the page cache, and so are made in place.
    """

    def __init__(self, reader: ValueReader | None = None) -> None:
        """`reader` opens the values that are read back."""
        self.reader = reader or ValueReader()
        self._file: IO[bytes] | None = None
        self._size = 0

    def write(self, outcome: ResultItem) -> SpilledOutcome:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="batchflow-")  # noqa: SIM115 - closed by `finalize`
            weakref.finalize(self, self._file.close)
        container: bytes | bytearray = b""
        if isinstance(outcome.value, ReceivedValue):
            container = outcome.value.data
            outcome = replace(outcome, value=None)
        data = wire.join("results", [wire.encode(outcome)])
        self._file.seek(self._size)
        self._file.write(data)
        self._file.write(container)
        spilled = SpilledOutcome(self, self._size, len(data), len(container))
        self._size += len(data) + len(container)
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
    container: int
    """Bytes of a value in a container, which follow."""

    def read(self) -> ResultItem:
        (outcome,) = wire.decode(self.file.read(self.offset, self.size))
        assert isinstance(outcome, ResultItem)
        if not self.container:
            return outcome
        return self.file.reader.opened(outcome, self.file.read(self.offset + self.size, self.container))
