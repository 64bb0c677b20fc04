"""The environment variables of tasks that an agent has read, kept in memory: their blobs never change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_MOST_BYTES: Final = 16 * 1024**2
"""Bytes of what is kept. What was used least recently goes first."""


class VariablesCache:
    """Variables by their blob. No value is in a log or a `repr`."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept: dict[str, Mapping[str, str]] = {}
        self._bytes = 0

    def get(self, blob: str) -> Mapping[str, str] | None:
        """Return the variables of a blob; None when they are not here."""
        if (found := self._kept.pop(blob, None)) is not None:
            self._kept[blob] = found
        return found

    def add(self, blob: str, variables: Mapping[str, str]) -> None:
        """Keep variables. Those of a blob that is known are the same."""
        if blob in self._kept:
            return
        self._kept[blob] = variables
        self._bytes += _size(variables)
        while self._bytes > self._most_bytes and len(self._kept) > 1:
            self._bytes -= _size(self._kept.pop(next(iter(self._kept))))


def _size(variables: Mapping[str, str]) -> int:
    return sum(len(name) + len(value) for name, value in variables.items())
