"""A named group of tasks in a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from batchflow.control import JobDocument
    from batchflow.pool import Pool
    from batchflow.session import Session
    from batchflow.sources import Files


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

    async def close(self) -> None:
        """Refuse new sessions; what was submitted goes on. Idempotent. Raises `JobNotFound`."""
        self._document = await self.pool._close_job(self.name)

    async def delete(self) -> None:
        """Cancel its tasks and drop its mail and files. Idempotent."""
        await self.pool.delete_job(self.name)

    def __repr__(self) -> str:
        return f"<Job {self.name!r} of pool {self.pool.id!r}, {self.state}>"

    def _repr_html_(self) -> str:
        from batchflow.cards import job_view

        return job_view(self)
