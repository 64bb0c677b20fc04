"""The record of messages whose tasks are all settled, which outlives a killed agent.

A message is completed a moment after its last result was sent. When the agent is killed in between, the
broker delivers the message again, and its tasks would run again although their results are there. So the
agent writes the message's id into a file that is mapped into memory, without a system call. The next agent of
the node completes such a message at once.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from node_agent.supervision.mapped_record import MappedRecord

_DIGEST: Final = 16
"""Bytes for each message."""
_KEPT: Final = 1024
"""Messages, the latest ones."""


class SettledRecord(MappedRecord):
    """The messages that were settled lately: written by this agent, read of the one before it."""

    def __init__(self, path: Path) -> None:
        """Read the record of the agent before, and begin a new one."""
        self._earlier = _read(path)
        super().__init__(path, _DIGEST * _KEPT, lost="settled_not_recorded")
        self._next = 0

    def add(self, message_id: str) -> None:
        """Record that the broker has the result, or a copy, of each task of this message."""
        start = self._next * _DIGEST
        self._map[start : start + _DIGEST] = _digest(message_id)
        self._next = (self._next + 1) % _KEPT

    def __contains__(self, message_id: str) -> bool:
        """Return whether the agent before had settled this message."""
        return bool(self._earlier) and _digest(message_id) in self._earlier


def _digest(message_id: str) -> bytes:
    return hashlib.blake2b(message_id.encode(), digest_size=_DIGEST).digest()


def _read(path: Path) -> frozenset[bytes]:
    try:
        data = path.read_bytes()
    except OSError:
        return frozenset()
    found = {data[start : start + _DIGEST] for start in range(0, len(data) - _DIGEST + 1, _DIGEST)}
    return frozenset(found - {bytes(_DIGEST)})
