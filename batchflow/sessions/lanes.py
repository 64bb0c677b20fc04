"""Chooses the lane of a session, in a pool that shares its slots fairly."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import anyio

from batchflow.errors import ProtocolError, StorageError
from batchflow.protocol import layout
from batchflow.protocol.documents import Presence, gone_after
from batchflow.protocol.lanes import check_priority, lane_for
from batchflow.support.event_log import event_logger

if TYPE_CHECKING:
    from batchflow.ports.broker import QueueRef
    from batchflow.ports.storage import Container
    from batchflow.protocol.lanes import Priority
    from batchflow.sessions.records.context import SessionContext

logger = event_logger(__name__)

_MOST_READ: Final = 100
"""Presence documents that are read, so that a session of a crowded pool opens in time."""
_AT_ONCE: Final = 16


async def queues_of(context: SessionContext, priority: Priority | None) -> list[QueueRef]:
    """Return the task queues that a session sends to: one lane, or all in a pool without lanes.

    The lane is one of those with the fewest sessions, by the presence documents of other clients' sessions.
    """
    runtime = context.runtime
    manifest, own = runtime.manifest, runtime.load.lanes
    if not manifest.lanes:
        if priority not in (None, "normal"):
            context.notices.warn(without_lanes("the session's priority", str(priority)))
        return list(manifest.task_queues)
    told = await _lanes_told(runtime.ctl, own)
    mine = _blobs(own)  # no sooner: sessions of this client may have opened, and closed, meanwhile
    used = Counter(own.values()) + Counter(lane for name, lane in told.items() if name not in mine)
    lane = lane_for(manifest.lanes, check_priority(priority), context.mailbox_id, used)
    own[context.mailbox_id] = lane
    return [manifest.task_queues[lane]]


def without_lanes(what: str, priority: str) -> str:
    """Say that a priority changes nothing. `what`: whose it is."""
    return (
        f"{what}, {priority}, changes nothing in this pool, where tasks run first come, first served: make a "
        "pool with sharing='fair'"
    )


def lane_aside(context: SessionContext, priority: Priority) -> QueueRef:
    """Return the task queue for tasks with a priority of their own, which is another than their session's."""
    manifest, own = context.runtime.manifest, context.runtime.load.lanes
    lane = lane_for(manifest.lanes, priority, context.mailbox_id, Counter(own.values()))
    return manifest.task_queues[lane]


async def _lanes_told(ctl: Container, own: dict[str, int]) -> dict[str, int]:
    """Return the lanes of living sessions of other clients, by their documents, as far as these are read."""
    found: dict[str, int] = {}
    mine = _blobs(own)
    limit = anyio.CapacityLimiter(_AT_ONCE)

    async def read(name: str, age: float) -> None:
        async with limit:
            try:
                presence = Presence.decode((await ctl.get(name)).data)
            except (StorageError, ProtocolError):
                return
        if presence.lane is not None and age < gone_after(presence.interval):
            found[name] = presence.lane

    try:
        infos = [info async for info in ctl.list(layout.SESSIONS) if info.name not in mine]
        infos.sort(key=lambda info: info.age)  # the youngest first, because the old ones may be gone
        async with anyio.create_task_group() as group:
            for info in infos[:_MOST_READ]:
                group.start_soon(read, info.name, info.age)
    except StorageError as error:
        logger.info("lanes_not_read", extra={"error": str(error)})
    return found


def _blobs(own: dict[str, int]) -> set[str]:
    return {layout.session_blob(*mailbox.split("/", 1)) for mailbox in own}
