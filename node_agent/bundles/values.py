"""The large values that an agent has in memory: those that its tasks returned, and those that they took.

A task that takes a value which another one left on the same node gets it from here. The names of blobs are
random, so only who was told of a value can name it. A value is a sealed file in memory. The processes of
tasks open it and cannot change it. The agent holds it once, and each task reads its own copy.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from batchflow.protocol.passed import PassedValue

LIMIT: Final = 128 * 1024**2
"""Bytes of values that are kept. Those that were used least recently go first."""
_MOST: Final = 256
"""Values that are kept: each takes a descriptor."""
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL

Patiently = Callable[[Callable[[], Awaitable[bytes]]], Awaitable[bytes]]


class SignedReads(Protocol):
    """The container of the values, as far as they are read."""

    async def get_signed(self, name: str, signature: str) -> bytes:
        """Read a blob by a signature. Raises `StorageError`."""


class StoredValue:
    """A value in a file in memory, which lasts as long as this object.

    Raises OSError when memory has no room.
    """

    def __init__(self, data: bytes) -> None:
        self.size: int = len(data)
        descriptor = os.memfd_create("value", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, descriptor)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        self.path: str = f"/proc/{os.getpid()}/fd/{descriptor}"
        """Where processes of the same user open it."""


class ValueCache:
    """Values by the names of their blobs, which never change."""

    def __init__(self, limit: int = LIMIT, most: int = _MOST) -> None:
        self._limit = limit
        self._most = most
        self._values: dict[str, StoredValue] = {}
        self.size: int = 0
        """Bytes of the values."""

    def get(self, blob: str) -> StoredValue | None:
        """Return a value; None when it is not here."""
        if (value := self._values.pop(blob, None)) is not None:
            self._values[blob] = value
        return value

    async def fetch(self, place: PassedValue, out: SignedReads, patiently: Patiently) -> StoredValue:
        """Return a value from memory, or from its blob. Raises `StorageError`, OSError.

        `patiently` makes a request, again where that may help.
        """
        if (value := self.get(place.blob)) is not None:
            return value
        return self.add(place.blob, await patiently(lambda: out.get_signed(place.blob, place.signature)))

    def keep(self, blob: str, data: bytes) -> None:
        """Keep a value if it fits at all. Raises OSError when memory has no room."""
        if len(data) <= self._limit:
            self.add(blob, data)

    def add(self, blob: str, data: bytes) -> StoredValue:
        """Return a value, and keep it if it fits at all. Raises OSError when memory has no room."""
        if (known := self._values.get(blob)) is not None:
            return known
        value = StoredValue(data)
        if value.size <= self._limit:
            self._values[blob] = value
            self.size += value.size
            while self.size > self._limit or len(self._values) > self._most:
                self.size -= self._values.pop(next(iter(self._values))).size
        return value
