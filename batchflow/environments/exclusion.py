"""Keeps two programs of one user from building the same at the same time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio

_POLLS: Final = (0.02, 0.5)
"""The first and the longest pause, in seconds, between two looks."""


@asynccontextmanager
async def exclusive(file: Path) -> AsyncIterator[None]:
    """Hold a file's lock, which one program has at a time; its end gives it back. Safe to cancel.

    Raises OSError when the file cannot be made.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        pause = _POLLS[0]
        while not _try_lock(descriptor):
            await anyio.sleep(pause)
            pause = min(2 * pause, _POLLS[1])
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
