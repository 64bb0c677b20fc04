"""What the agents of a pool have used, as clients read it: their records, and newer heartbeats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchflow.pools.reports.changed_documents import ChangedDocuments
from batchflow.pools.reports.heartbeats import read_heartbeats
from batchflow.protocol import layout
from batchflow.protocol.documents import Presence, Usage, UsageRecord, gone_after

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchflow.ports.storage import Container


class UsageReader:
    """Reads what the agents of one pool have used. A record that has not changed is read once."""

    def __init__(self, out: Container) -> None:
        self._out = out
        self._documents = ChangedDocuments(out, layout.USAGE, UsageRecord.decode)
        self._used: dict[str, Usage] = {}
        """What each agent has used; what was read once stays, because records are never removed."""

    async def read(self) -> list[Usage]:
        """Return what each agent has used since the pool was made. Raises `StorageError`."""
        documents = await self._documents.read()
        self._used |= {record.agent: record.usage for _, record in documents}
        beats = await read_heartbeats(self._out, fresh_only=False)
        told = {beat.agent: beat.usage for beat in beats if beat.usage is not None}
        return [newest(self._used.get(agent), told.get(agent)) for agent in self._used.keys() | told.keys()]


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
    presences = await ChangedDocuments(ctl, layout.SESSIONS, Presence.decode).read()
    return sum(
        presence.counts.get(state, 0)
        for info, presence in presences
        if info.age < gone_after(presence.interval)
        for state in layout.UNDER_WAY
    )
