"""What a node has begun of broadcasts: a file for each task, which outlives an agent that is killed.

A task of a broadcast has no message in a queue. So its file is what tells the next agent of the node that it
must not begin again, and has the result until the broker has it.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Final

SETTLED: Final = b"-"
"""What stands for a task of which nothing is left to do."""
_KEPT: Final = 2 * 86400.0
"""Seconds that a file stays: longer than any order does."""


class BroadcastRecord:
    """The files, in a folder of the agent."""

    def __init__(self, folder: Path) -> None:
        """Remove what is too old. The folder is made with the first task."""
        self._folder = folder
        now = time.time()
        for path in folder.glob("*") if folder.is_dir() else ():
            try:
                if path.stat().st_mtime < now - _KEPT:
                    path.unlink()
            except FileNotFoundError:
                continue

    def read(self, uid: str) -> bytes | None:
        """Return what is known of a task: None if it has not begun here, b"" if it began, `SETTLED`, or else
        its result, which the broker may not have. Raises OSError."""
        try:
            return self._path(uid).read_bytes()
        except FileNotFoundError:
            return None

    def begin(self, uid: str) -> None:
        """Note that a task begins. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path(uid).write_bytes(b"")

    def ended(self, uid: str, result: bytes) -> None:
        """Keep the result of a task, or `SETTLED`. Raises OSError."""
        path = self._path(uid)
        new = path.with_suffix(".new")
        new.write_bytes(result)
        new.replace(path)

    def _path(self, uid: str) -> Path:
        return self._folder / hashlib.sha256(uid.encode()).hexdigest()[:32]
