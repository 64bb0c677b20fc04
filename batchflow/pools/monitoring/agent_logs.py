"""Agents' log lines on their way to Log Analytics: one living client reads them from the pool's container.

An agent holds no token that opens Log Analytics. Its lines lie in the container `out` anyway. Of the clients
that would send them one does: it has a lease, a document in the control container that also says how far it
has read. When it ends, another takes over within a lease.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from batchflow.errors import BlobConflict, BlobNotFound, ProtocolError, StorageError
from batchflow.pools.monitoring.rows import agent_log_row
from batchflow.protocol.documents import Document
from batchflow.protocol.layout import LOGS
from batchflow.support.event_log import event_logger
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from batchflow.pools.runtime import PoolRuntime

logger = event_logger(__name__)

BLOB: Final = "monitor/logs.json"
LEASE: Final = 60.0
"""Seconds for which the reader of a pool's logs is the only one, from its last reading."""
PAUSE: Final = 15.0
"""Seconds between two readings."""


@frozen
class ReadPosition(Document):
    """Who reads a pool's logs, until when, and how far it has come."""

    VERSION: ClassVar[int] = 1

    holder: str
    until: float
    """Seconds since the epoch."""
    read: Mapping[str, int] = field(default_factory=dict)
    """Bytes, by the log's blob."""


class AgentLogs:
    """Reads the logs of pools, where no other client does."""

    def __init__(self, put: Callable[[list[dict[str, Any]]], None]) -> None:
        """`put`: takes rows."""
        self._put = put
        self._me = secrets.token_hex(6)
        self._due: dict[str, float] = {}

    async def read(self, runtime: PoolRuntime) -> bool:
        """Put what the logs have gained, when it is time for it.

        Returns whether it was, and this client tells of the pool's agents. An error is logged, and what was
        not read is read the next time.
        """
        now = time.time()
        if now < self._due.get(runtime.pool_id, 0.0):
            return False
        self._due[runtime.pool_id] = now + PAUSE
        try:
            return await self._read(runtime, now)
        except (StorageError, ProtocolError) as error:
            logger.info("agent_logs_not_read", extra={"pool": runtime.pool_id, "error": str(error)})
            return False

    async def _read(self, runtime: PoolRuntime, now: float) -> bool:
        position, etag = await self._position(runtime)
        if position.holder != self._me and position.until > now:
            return False
        try:
            held = replace(position, holder=self._me, until=now + LEASE)
            etag = await runtime.ctl.put(BLOB, held.encode(), if_match=etag, create=etag is None)
        except BlobConflict:
            return False  # another client was quicker
        found: list[dict[str, Any]] = []
        read: dict[str, int] = {}
        async for info in runtime.out.list(LOGS):
            read[info.name] = min(info.size, position.read.get(info.name, 0))
            if info.size > read[info.name]:
                data = (await runtime.out.get(info.name)).data
                whole = data[read[info.name] : data.rfind(b"\n") + 1]
                read[info.name] += len(whole)
                found += self._rows(runtime.pool_id, info.name, whole)
        try:
            await runtime.ctl.put(BLOB, replace(held, read=read).encode(), if_match=etag)
        except BlobConflict:
            return False  # the lease was lost: the other client reads the same lines
        self._put(found)
        return True

    async def _position(self, runtime: PoolRuntime) -> tuple[ReadPosition, str | None]:
        try:
            blob = await runtime.ctl.get(BLOB)
        except BlobNotFound:
            return ReadPosition("", 0.0), None
        return ReadPosition.decode(blob.data), blob.etag

    def _rows(self, pool: str, blob: str, data: bytes) -> list[dict[str, Any]]:
        _, _, rest = blob.removeprefix(LOGS).partition("/")
        node = rest.partition("/")[0]
        lines = data.decode(errors="replace").splitlines()
        return [row for line in lines if (row := agent_log_row(pool, node, line)) is not None]
