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
from node_agent.system.rate import Rate
from node_agent.system.task_fields import task_fields

if TYPE_CHECKING:
    from batchflow.ports.storage import Container

logger = logging.getLogger(__name__)

BURST: Final = 50
"""Failures that are kept at once."""
PACE: Final = 2.0
"""Seconds for which each further one has to wait."""
_TIMEOUT: float = 20.0
"""Seconds that one may take to be written."""


class FailedTasks:
    """Takes the tasks that failed, and writes them while `run` runs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rate = Rate(1.0 / PACE, BURST)
        self._waiting: deque[FailedTask] = deque()
        self._filled = asyncio.Event()

    def keep(self, failed: FailedTask) -> None:
        """Take a task, unless the rate is reached. Does not wait."""
        if self._rate.allows(self._clock()):
            self._waiting.append(failed)
            self._filled.set()

    async def run(self, out: Container) -> None:
        """Write what was taken until cancelled."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            await self.flush(out)

    async def flush(self, out: Container) -> None:
        """Write what waits. A task that cannot be written is dropped, and logged.

        If cancelled, the task under way is written the next time.
        """
        while self._waiting:
            await _write(out, self._waiting[0])
            self._waiting.popleft()


async def _write(out: Container, failed: FailedTask) -> None:
    try:
        async with asyncio.timeout(_TIMEOUT):
            await out.put(failed.blob, failed.encode(), create=True)
    except BlobConflict:
        return  # the attempt ran twice, and failed twice
    except (StorageError, TypeError, TimeoutError) as error:
        logger.warning("failed_task_not_kept", extra={**task_fields(failed.task), "error": str(error)})
