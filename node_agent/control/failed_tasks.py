"""Keeps the tasks that failed on this agent in the `out` container, so that `batchflow replay` finds them.

The rate is bounded: the first failures of an agent are kept at once, later ones as time goes by. A session of
a hundred thousand failing tasks therefore writes no hundred thousand blobs. What is over the rate is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from batchflow.errors import BlobConflict, StorageError
from batchflow.protocol.failed_tasks import FailedTask
from node_agent.system.task_fields import task_fields

if TYPE_CHECKING:
    from batchflow.ports.storage import Container

logger = logging.getLogger(__name__)

BURST: Final = 50
"""Failures that are kept at once."""
PACE: Final = 2.0
"""Seconds for which each further one has to wait."""


class FailedTasks:
    """Takes the tasks that failed, and writes them while `run` runs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.dropped = 0
        """Failures that were not kept, because they came too fast."""
        self._clock = clock
        self._room = float(BURST)
        self._at = clock()
        self._waiting: deque[FailedTask] = deque()
        self._filled = asyncio.Event()

    def keep(self, failed: FailedTask) -> None:
        """Take a task, unless the rate is reached. Does not wait."""
        now = self._clock()
        self._room = min(float(BURST), self._room + (now - self._at) / PACE)
        self._at = now
        if self._room < 1.0:
            self.dropped += 1
            return
        self._room -= 1.0
        self._waiting.append(failed)
        self._filled.set()

    @property
    def waiting(self) -> int:
        """Number of tasks that are not written yet."""
        return len(self._waiting)

    async def run(self, out: Container) -> None:
        """Write what was taken until cancelled. A task that cannot be written is dropped, and logged."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._waiting:
                await self._write(out, self._waiting[0])
                self._waiting.popleft()

    async def _write(self, out: Container, failed: FailedTask) -> None:
        try:
            await out.put(failed.blob, failed.encode(), create=True)
        except BlobConflict:
            return  # the attempt ran twice, and failed twice
        except (StorageError, TypeError) as error:
            self.dropped += 1
            logger.warning("failed_task_not_kept", extra={**task_fields(failed.task), "error": str(error)})
