"""What the agents of a pool have used, as clients read it: their records, and newer heartbeats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio

from batchflow.errors import BlobNotFound, ProtocolError
from batchflow.pools.reports.heartbeats import read_heartbeats
from batchflow.protocol import layout
from batchflow.protocol.documents import Presence, Usage, UsageRecord, gone_after
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchflow.ports.storage import BlobInfo, Container

_READS: Final = 16
"""Documents that are read at the same time."""
_SESSIONS: Final = "sessions/"


class UsageReader:
    """Reads what the agents of one pool have used. A record that has not changed is read once."""

    def __init__(self, out: Container) -> None:
        self._out = out
        self._known: dict[str, tuple[str, UsageRecord]] = {}
        """ETag and record of each agent, by the name of the blob."""

    async def read(self) -> list[Usage]:
        """Return what each agent has used since the pool was made. Raises `StorageError`."""
        infos = [info async for info in self._out.list(layout.USAGE)]
        limiter = anyio.CapacityLimiter(_READS)
        async with task_group() as group:
            for info in infos:
                if self._known.get(info.name, ("", None))[0] != info.etag:
                    group.start_soon(self._read, info, limiter)
        records = {record.agent: record.usage for _, record in self._known.values()}
        beats = await read_heartbeats(self._out, fresh_only=False)
        told = {beat.agent: beat.usage for beat in beats if beat.usage is not None}
        return [newest(records.get(agent), told.get(agent)) for agent in records.keys() | told.keys()]

    async def _read(self, info: BlobInfo, limiter: anyio.CapacityLimiter) -> None:
        async with limiter:
            try:
                blob = await self._out.get(info.name)
                self._known[info.name] = (blob.etag, UsageRecord.decode(blob.data))
            except (BlobNotFound, ProtocolError):
                return  # of a later version, or forged by a task: it counts nothing


def newest(*told: Usage | None) -> Usage:
    """Return the newest of what is told of one agent: its seconds only grow."""
    return max((each for each in told if each is not None), key=lambda each: each.seconds)


def total(usages: Iterable[Usage]) -> tuple[Usage, Usage]:
    """Add up what agents on dedicated nodes have used, and those on spot nodes."""
    sums = {True: [0.0, 0.0, 0], False: [0.0, 0.0, 0]}
    for usage in usages:
        of_kind = sums[usage.dedicated]
        of_kind[0] += max(0.0, usage.seconds)
        of_kind[1] += max(0.0, usage.busy)
        of_kind[2] += max(0, usage.tasks)
    dedicated, spot = (
        Usage(kind, seconds, busy, int(tasks)) for kind, (seconds, busy, tasks) in sums.items()
    )
    return dedicated, spot


async def unfinished_tasks(ctl: Container) -> int:
    """Count the tasks of the pool's open sessions that have not ended, as the sessions last told.

    Raises `StorageError`.
    """
    found = 0
    async for info in ctl.list(_SESSIONS):
        try:
            presence = Presence.decode((await ctl.get(info.name)).data)
        except (BlobNotFound, ProtocolError):
            continue
        if info.age < gone_after(presence.interval):
            found += sum(presence.counts.get(state, 0) for state in layout.UNDER_WAY)
    return found
