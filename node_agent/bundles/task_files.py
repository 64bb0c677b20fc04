"""The files of tasks that an agent has at hand: those that its tasks left, and those that they took.

A task that takes a file which another one left on the same node gets it from here. A file has no name on the
disk, only an open descriptor, so its space is free when the agent ends. Tasks run as the agent's user and can
reach it all the same. So its times are compared before it is used, and it is never handed out itself: the
task that takes it gets a copy.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from node_agent.bundles.stored_file import StoredFile
from node_agent.bundles.workspace import remove

LIMIT: Final = 1024**3
"""Bytes of files that are kept. Those that were used least recently go first."""
_MOST: Final = 64
"""Files that are kept: each takes a descriptor."""


class FileCache:
    """Files by the names of their blobs, whose content never changes."""

    def __init__(self, folder: Path, limit: int = LIMIT, most: int = _MOST) -> None:
        """`folder`: where files are while they are downloaded. Nothing else may be there."""
        self._folder = folder
        self._made = False
        """Whether the folder was made, without what an earlier agent left there."""
        self._limit = limit
        self._most = most
        self._files: dict[str, StoredFile] = {}
        self._fetches: dict[str, asyncio.Future[StoredFile]] = {}
        self.size: int = 0
        """Bytes of the files."""

    def get(self, blob: str) -> StoredFile | None:
        """Return a file; None when it is not here, or was changed."""
        if (file := self._files.pop(blob, None)) is None:
            return None
        if not file.is_intact():
            self.size -= file.size
            return None
        self._files[blob] = file
        return file

    async def fetch(self, blob: str, download: Callable[[Path], Awaitable[None]]) -> StoredFile:
        """Return a file from here, or download it; several calls at once share one download.

        Raises what `download` raises, OSError.
        """
        while True:
            if (file := self.get(blob)) is not None:
                return file
            if (fetching := self._fetches.get(blob)) is None:
                return await self._fetch(blob, download)
            await asyncio.wait([fetching])
            if not fetching.cancelled() and fetching.exception() is None:
                return fetching.result()

    async def _fetch(self, blob: str, download: Callable[[Path], Awaitable[None]]) -> StoredFile:
        fetching: asyncio.Future[StoredFile] = asyncio.get_running_loop().create_future()
        self._fetches[blob] = fetching
        path = self._folder / f"{secrets.token_hex(8)}.file"
        try:
            if not self._made:
                remove(self._folder)
                self._folder.mkdir(parents=True)
                self._made = True
            await download(path)
            file = self.add(blob, path)
            fetching.set_result(file)
            return file
        finally:
            del self._fetches[blob]
            fetching.cancel()
            path.unlink(missing_ok=True)

    def add(self, blob: str, path: Path) -> StoredFile:
        """Take over a file, and keep it if it fits at all. Raises OSError."""
        file = StoredFile(path)
        if (former := self._files.pop(blob, None)) is not None:
            self.size -= former.size
        if file.size <= self._limit:
            self._files[blob] = file
            self.size += file.size
            while self.size > self._limit or len(self._files) > self._most:
                self.size -= self._files.pop(next(iter(self._files))).size
        return file
