"""A named group of tasks in a pool."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from batchflow.errors import BlobNotFound, ProtocolError
from batchflow.model import JobCounts
from batchflow.protocol.documents import Presence, gone_after

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from batchflow.files import Files
    from batchflow.pool import Pool
    from batchflow.protocol.documents import Heartbeat, JobDocument
    from batchflow.session import Session


class Job:
    """Made by `pool.create_job` or `pool.job`. Costs nothing while nothing runs in it."""

    def __init__(self, pool: Pool, document: JobDocument) -> None:
        self.pool = pool
        self._document = document

    @property
    def name(self) -> str:
        return self._document.name

    @property
    def state(self) -> Literal["open", "closed", "deleted"]:
        """As it was when this object was made or last changed."""
        return self._document.state

    @property
    def created_at(self) -> float:
        """Seconds since the epoch."""
        return self._document.created_at

    def session(self, client_name: str | None = None, files: Files | None = None) -> Session:
        """A client's mailbox in this job; open it with `async with` or `await`."""
        return self.pool.session(client_name, job=self.name, files=files)

    async def counts(self) -> JobCounts:
        """How many of its tasks are where, by what its sessions and the agents last told.

        Of sessions elsewhere that is as old as `session.presence_interval`, of agents as a heartbeat. Raises
        `StorageError`. Safe to cancel.
        """
        return await self._counts(await self.pool.heartbeats())

    async def _counts(self, beats: list[Heartbeat]) -> JobCounts:
        here = {session.name: session for session in self.pool._sessions if session.job_name == self.name}
        told: list[Mapping[str, int]] = [asdict(session.counts) for session in here.values()]
        told += [counts async for name, counts in self._told() if name not in here]
        running = sum(task.job == self.name for beat in beats for task in beat.running)
        total: Counter[str] = sum((Counter(each) for each in told), Counter())
        return JobCounts(
            sessions=len(told),
            waiting=max(0, total["sending"] + total["queued"] - running),
            running=running,
            succeeded=total["succeeded"],
            failed=total["failed"],
            cancelled=total["cancelled"],
        )

    async def _told(self) -> AsyncIterator[tuple[str, Mapping[str, int]]]:
        """What its sessions that show signs of life last told, by their names."""
        prefix, ctl = f"sessions/{self.name}/", self.pool.runtime.ctl
        async for info in ctl.list(prefix):
            try:
                presence = Presence.decode((await ctl.get(info.name)).data)
            except (BlobNotFound, ProtocolError):
                continue
            if info.age < gone_after(presence.interval):
                yield info.name.removeprefix(prefix).removesuffix(".json"), presence.counts

    async def close(self) -> None:
        """Refuse new sessions; what was submitted goes on. Idempotent. Raises `JobNotFound`."""
        self._document = await self.pool._close_job(self.name)

    async def delete(self) -> None:
        """Cancel its tasks and drop its mail and files. Idempotent."""
        await self.pool.delete_job(self.name)

    def __repr__(self) -> str:
        return f"<Job {self.name!r} of pool {self.pool.id!r}, {self.state}>"

    def _repr_html_(self) -> str:
        from batchflow.display.cards import job_view

        return job_view(self)
