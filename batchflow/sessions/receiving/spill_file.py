"""Unread outcomes, on disk instead of in memory."""

from __future__ import annotations

import os
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

    Reads and writes are short and sequential, in the page cache, and so are made in place. There is no buffer
    in between, so that a write that failed on a full disk leaves nothing behind.
    """

    def __init__(self, reader: ValueReader | None = None) -> None:
        """`reader` opens the values that are read back."""
        self.reader = reader or ValueReader()
        self._file: IO[bytes] | None = None
        self._size = 0

    def write(self, outcome: ResultItem) -> SpilledOutcome:
        """Write an outcome. Raises OSError; what was written before stays readable."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="batchflow-", buffering=0)  # noqa: SIM115 - by finalize
            weakref.finalize(self, self._file.close)
        container: bytes | bytearray = b""
        if isinstance(outcome.value, ReceivedValue):
            container = outcome.value.data
            outcome = replace(outcome, value=None)
        data = wire.join("results", [wire.encode(outcome)])
        self._write(data, self._size)
        self._write(container, self._size + len(data))
        spilled = SpilledOutcome(self, self._size, len(data), len(container))
        self._size += len(data) + len(container)
        return spilled

    def _write(self, data: bytes | bytearray, at: int) -> None:
        assert self._file is not None
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._file.fileno(), rest, at)
            rest, at = rest[written:], at + written

    def read(self, offset: int, size: int) -> bytes:
        assert self._file is not None
        return os.pread(self._file.fileno(), size, offset)


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
