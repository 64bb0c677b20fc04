"""Removes folders beside the event loop, because one may hold tens of thousands of files."""

from __future__ import annotations

import asyncio
import logging
import os
from itertools import count
from typing import TYPE_CHECKING

from node_agent.bundles.workspace import remove

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)


class FolderRemoval:
    """Takes folders away at once, and empties them in threads. For one event loop."""

    def __init__(self, aside: Path) -> None:
        """`aside`: a folder on the same file system, for what is being removed. It is emptied here."""
        self._aside = aside
        self._numbers = count()
        self._tasks: set[asyncio.Task[None]] = set()
        remove(aside)

    def take(self, folder: Path) -> None:
        """Remove a folder. Its name is free when this returns. Does nothing when there is none."""
        aside = self._aside / str(next(self._numbers))
        self._aside.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(folder, aside)
        except FileNotFoundError:
            return
        task = asyncio.create_task(self._empty(aside), name=f"remove {folder.name[:12]}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def emptied(self) -> None:
        """Wait until the disk has the room of what was taken. Safe to cancel."""
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    async def _empty(self, folder: Path) -> None:
        try:
            await asyncio.to_thread(remove, folder)
        except OSError as error:  # the next agent empties it
            logger.warning("folder_not_removed", extra={"folder": str(folder), "error": str(error)})
