"""Where the page's figures come from: what clients and services know, without a server of batchflow's."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio

from batchflow.dashboard.dead_letters import dead_letters
from batchflow.dashboard.views import cost_view, explanation_view
from batchflow.errors import BlobNotFound
from batchflow.pools.reports.changed_documents import ChangedDocuments
from batchflow.pools.reports.heartbeats import is_fresh
from batchflow.protocol import activity, layout
from batchflow.protocol.documents import Heartbeat, Presence, gone_after
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from batchflow.pool import Pool
    from batchflow.pools.open_sessions import OpenSession
    from batchflow.ports.compute import NodeInfo
    from batchflow.ports.storage import BlobInfo
    from batchflow.protocol.activity import ActivityBatch

_READS: Final = 16
"""Records that are read at the same time."""
_MOST_DOCUMENTS: Final = 250
"""Heartbeats, and sessions, that are read at one look; the others are read at the next ones."""
_MOST_RECORDS: Final = 500
"""Records that are read at one look."""
_MOST_REMOVED: Final = 20
"""Old records that are removed at one look."""


class Source(Protocol):
    """A pool, as the page watches it. Every coroutine may raise `BatchflowError`."""

    @property
    def pool_id(self) -> str: ...

    async def beats(self) -> list[Heartbeat]:
        """Return the last heartbeats of the living agents."""

    async def nodes(self) -> list[NodeInfo]:
        """Return the nodes as Batch describes them."""

    async def activity(self) -> list[ActivityBatch]:
        """Return what agents have recorded since the last call; at first, all that is there."""

    async def queues(self) -> list[dict[str, Any]]:
        """Return the queues with the numbers of their messages."""

    async def dead_letters(self) -> list[dict[str, Any]]:
        """Return what the dead letters hold and why they are dead."""

    async def sessions(self) -> list[dict[str, Any]]:
        """Return the sessions that are open, in all programs."""

    async def jobs(self) -> list[dict[str, Any]]:
        """Return the jobs."""

    async def cost(self) -> dict[str, Any]:
        """Return what the pool has cost."""

    async def explain(self) -> dict[str, Any]:
        """Return why nothing happens."""

    def own_sessions(self) -> list[OpenSession]:
        """Return the sessions of this process."""


class PoolSource:
    """A pool of a client."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        out, ctl = pool.runtime.out, pool.runtime.ctl
        self._beats = ChangedDocuments(out, layout.HEARTBEATS, Heartbeat.decode, _MOST_DOCUMENTS)
        self._presences = ChangedDocuments(ctl, layout.SESSIONS, Presence.decode, _MOST_DOCUMENTS)
        self._read: dict[str, tuple[int, str]] = {}
        """The bytes of a record that were read, and its ETag then."""
        self._looked_at = 0.0

    @property
    def pool_id(self) -> str:
        return self.pool.id

    async def beats(self) -> list[Heartbeat]:
        """Return the last heartbeats of the living agents. What has not changed is not read again."""
        return [beat for info, beat in await self._beats.read() if is_fresh(beat, info.age)]

    async def nodes(self) -> list[NodeInfo]:
        """Return the nodes as Batch describes them."""
        return await self.pool.runtime.connections.compute.nodes(self.pool.id)

    async def activity(self) -> list[ActivityBatch]:
        """Return what agents have recorded since the last call, and remove records that are too old."""
        out, now = self.pool.runtime.out, time.monotonic()
        if now - self._looked_at > activity.SEGMENT:
            self._read.clear()  # blobs may have begun anew meanwhile
        self._looked_at = now
        infos = [info async for info in out.list(layout.ACTIVITY)]
        names = {info.name for info in infos}
        self._read = {name: known for name, known in self._read.items() if name in names}
        old = [info for info in infos if info.age > activity.RETENTION + activity.SEGMENT]
        fresh = [
            info
            for info in infos
            if info.age <= activity.RETENTION and self._read.get(info.name, (0, ""))[1] != info.etag
        ]
        fresh.sort(key=lambda info: info.modified_at, reverse=True)
        found: list[ActivityBatch] = []
        limiter = anyio.CapacityLimiter(_READS)

        async def read(info: BlobInfo) -> None:
            async with limiter:
                start = self._read.get(info.name, (0, ""))[0]
                if start > info.size:
                    start = 0  # its turn in the ring has come
                try:
                    data = await out.get_from(info.name, start)
                except BlobNotFound:
                    return
                self._read[info.name] = (start + len(data), info.etag)
                found.extend(activity.decode(data))

        async with task_group() as group:
            for info in fresh[:_MOST_RECORDS]:
                group.start_soon(read, info)
            for info in old[:_MOST_REMOVED]:
                group.start_soon(out.delete, info.name)
        return sorted(found, key=lambda batch: batch.at)

    async def queues(self) -> list[dict[str, Any]]:
        """Return the queues with the numbers of their messages."""
        manifest, connections = self.pool.runtime.manifest, self.pool.runtime.connections
        found = []
        for queue, figures in zip(manifest.queues, await connections.figures(manifest.queues), strict=True):
            kind = "tasks" if queue in manifest.task_queues else "results"
            found.append(
                {
                    "name": queue.entity,
                    "kind": kind,
                    "active": figures.active,
                    "scheduled": figures.scheduled,
                    "dead": figures.dead,
                }
            )
        return found

    async def dead_letters(self) -> list[dict[str, Any]]:
        """Return what the dead letters of the task queues hold, and why they are dead."""
        return await dead_letters(self.pool.runtime)

    async def sessions(self) -> list[dict[str, Any]]:
        """Return the sessions that are open, in all programs; of those here, as they are now."""
        own = {(each.job, each.name): each for each in self.own_sessions()}
        found: list[dict[str, Any]] = []
        for (job, name), each in own.items():
            row: dict[str, Any] = {"job": job, "name": name, "here": True, "holder": "this program"}
            found.append(row | {"counts": asdict(each.counts())})
        here = {layout.session_blob(job, name) for job, name in own}
        for info, presence in await self._presences.read(without=here):
            if info.age < gone_after(presence.interval):
                job, _, name = info.name.removeprefix(layout.SESSIONS).removesuffix(".json").partition("/")
                row = {"job": job, "name": name, "here": False, "holder": presence.holder}
                found.append(row | {"counts": dict(presence.counts)})
        return found

    async def jobs(self) -> list[dict[str, Any]]:
        """Return the jobs."""
        jobs = [job async for job in self.pool.jobs()]
        return [{"name": job.name, "state": job.state, "created": job.created_at} for job in jobs]

    async def cost(self) -> dict[str, Any]:
        """Return what the pool has cost."""
        return cost_view(await self.pool.cost())

    async def explain(self) -> dict[str, Any]:
        """Return why nothing happens."""
        return explanation_view(await self.pool.explain())

    def own_sessions(self) -> list[OpenSession]:
        """Return the sessions that the client has open in this pool."""
        return self.pool.runtime.open_sessions
