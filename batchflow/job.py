"""A named group of tasks in a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from batchflow.diagnosis.live_view import LiveView
from batchflow.model import JobCounts
from batchflow.pools.reports.heartbeats import read_heartbeats

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchflow.environments.requirements import Requirements
    from batchflow.files import Files
    from batchflow.pools.jobs import PoolJobs
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.protocol.documents import JobDocument
    from batchflow.session import Session


class _MakeSession(Protocol):
    def __call__(
        self,
        name: str | None,
        *,
        job: str,
        files: Files | None,
        env: Mapping[str, str] | None,
        secrets: Mapping[str, str] | None,
        requirements: Requirements | None,
    ) -> Session: ...


class Job(LiveView):
    """A job; made by `pool.create_job` or `pool.job`. It costs nothing while no task runs in it."""

    def __init__(
        self, document: JobDocument, jobs: PoolJobs, runtime: PoolRuntime, make_session: _MakeSession
    ) -> None:
        self._document = document
        self._jobs = jobs
        self._runtime = runtime
        self._make_session = make_session
        self._seen: JobCounts | None = None  # for views, which cannot ask

    @property
    def pool_id(self) -> str:
        return self._runtime.pool_id

    @property
    def name(self) -> str:
        return self._document.name

    @property
    def state(self) -> Literal["open", "closed", "deleted"]:
        """The state when this object was made or last changed."""
        return self._document.state

    @property
    def created_at(self) -> float:
        """Seconds since the epoch."""
        return self._document.created_at

    def session(
        self,
        client_name: str | None = None,
        files: Files | None = None,
        *,
        env: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        requirements: Requirements | None = None,
    ) -> Session:
        """Make a session in this job; open it with `async with` or `await`.

        `env`, `secrets`: environment variables of its tasks, over those of the job and the pool.
        `requirements`: the Python packages of its tasks; None: those of the job, or the pool.
        """
        return self._make_session(
            client_name, job=self.name, files=files, env=env, secrets=secrets, requirements=requirements
        )

    async def counts(self) -> JobCounts:
        """Count the job's tasks by their state, from what its sessions and the agents last reported.

        Reports of sessions in other programs are up to `session.presence_interval` seconds old, those of
        agents up to a heartbeat. Raises `StorageError`. Safe to cancel.
        """
        self._seen = await self._jobs.counts(self.name, await read_heartbeats(self._runtime.out))
        return self._seen

    async def close(self) -> None:
        """Refuse new sessions and tasks; submitted tasks go on. Idempotent. Raises `JobNotFound`."""
        self._document = await self._jobs.close(self.name)

    async def delete(self) -> None:
        """Cancel the job's tasks, and delete its messages and files. Idempotent."""
        await self._jobs.delete(self.name)

    def __repr__(self) -> str:
        return f"<Job {self.name!r} of pool {self.pool_id!r}, {self.state}>"

    def _repr_html_(self) -> str:
        from batchflow.display.html import job_card

        sessions = self._runtime.sessions.of_job(self.pool_id, self.name)
        return job_card(self, self._seen, [each.summary() for each in sessions])

    async def _ask(self) -> None:
        await self.counts()
