"""The blobs with a session's large arguments, and until when they are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio

from batchflow.errors import StorageError
from batchflow.support.event_log import event_logger
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from batchflow.ports.storage import Container
    from batchflow.support.background import Background

logger = event_logger(__name__)

_DELETIONS: Final = 16
"""Blobs that are deleted at once."""


class StoredArguments:
    """Keeps the arguments of tasks that have ended until the session closes, so that a result can show them.

    The arguments of a failed task are kept for longer: a sweep removes them.
    """

    def __init__(self, ctl: Container, retention: float, background: Background) -> None:
        """`retention`: seconds for which the arguments of a failed task are kept."""
        self._ctl = ctl
        self._retention = retention
        self._background = background
        self._blobs: list[str] = []

    def ended(self, blob: str, *, failed: bool) -> None:
        """Note that a task with these arguments has its outcome."""
        if not failed:
            self._blobs.append(blob)
        elif not self._retention:
            self._background.start(delete_blob(self._ctl, blob), "delete arguments", last=True)

    def delete(self) -> None:
        """Delete in the background what no outcome needs any more. The session's end waits for it."""
        if self._blobs:
            blobs, self._blobs = self._blobs, []
            self._background.start(self._delete(blobs), "delete arguments", last=True)

    async def _delete(self, blobs: list[str]) -> None:
        limiter = anyio.CapacityLimiter(_DELETIONS)

        async def delete(blob: str) -> None:
            async with limiter:
                await delete_blob(self._ctl, blob)

        async with task_group() as group:
            for blob in blobs:
                group.start_soon(delete, blob)


async def delete_blob(container: Container, blob: str) -> None:
    """Delete a blob; a failure is logged, because a sweep deletes it later."""
    try:
        await container.delete(blob)
    except StorageError as error:
        logger.warning("blob_not_deleted", extra={"blob": blob, "error": str(error)})
