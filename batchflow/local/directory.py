"""The directory of a local cloud: private, locked while its cloud lives, removed even when write-protected.

A cloud that was killed together with the program that would have tidied up leaves its directory behind. Its
lock, which the kernel frees, tells the next cloud that it may remove it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "batchflow-"
_LOCK = "lock"


def make_directory() -> Path:
    """Make an empty directory that only its owner may enter, among the temporary files."""
    return Path(tempfile.mkdtemp(prefix=PREFIX))


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock: until the end of the body, or of the process."""
    # The lock is taken before the file has its name, so that it is never seen free.
    nameless = directory / f"{_LOCK}.new"
    descriptor = os.open(nameless, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        nameless.rename(directory / _LOCK)
        yield
    finally:
        os.close(descriptor)


def remove_abandoned() -> None:
    """Remove the directories of clouds that died without removing them; those of others are left alone."""
    for directory in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if _is_abandoned(directory):
            remove_tree(directory)


def remove_tree(directory: Path) -> bool:
    """Remove a directory and all that is in it, also what a task write-protected; whether it is gone."""
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        for folder, _, _ in os.walk(directory):
            with contextlib.suppress(OSError):
                os.chmod(folder, stat.S_IRWXU)
        shutil.rmtree(directory, ignore_errors=True)
    return not directory.exists()


def _is_abandoned(directory: Path) -> bool:
    try:
        descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(descriptor).st_uid == os.getuid()
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
