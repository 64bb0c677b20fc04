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
            context.notices.warn(
                f"the session's priority, {priority}, changes nothing in this pool, where tasks run first "
                "come, first served: make a pool with sharing='fair'"
            )
        return list(manifest.task_queues)
    used = Counter(own.values()) + await _lanes_of_others(runtime.ctl, own)
    lane = lane_for(manifest.lanes, check_priority(priority), context.mailbox_id, used)
    own[context.mailbox_id] = lane
    return [manifest.task_queues[lane]]


async def _lanes_of_others(ctl: Container, own: dict[str, int]) -> Counter[int]:
    """Count the living sessions of other clients in each lane. What cannot be read counts nowhere."""
    found: Counter[int] = Counter()
    mine = {layout.session_blob(*mailbox.split("/", 1)) for mailbox in own}
    limit = anyio.CapacityLimiter(_AT_ONCE)

    async def read(name: str, age: float) -> None:
        async with limit:
            try:
                presence = Presence.decode((await ctl.get(name)).data)
            except (StorageError, ProtocolError):
                return
        if presence.lane is not None and age < gone_after(presence.interval):
            found[presence.lane] += 1

    try:
        infos = [info async for info in ctl.list(layout.SESSIONS) if info.name not in mine][:_MOST_READ]
        async with anyio.create_task_group() as group:
            for info in infos:
                group.start_soon(read, info.name, info.age)
    except StorageError as error:
        logger.info("lanes_not_read", extra={"error": str(error)})
    return found
