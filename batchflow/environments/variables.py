"""The environment variables of tasks, brought into a pool: those of the pool, of a job, of a session.

Each level has a blob of its own in the control container, with a random name. A session merges the three when
it opens, and its tasks name the session's blob alone. So a change of a pool's or a job's variables counts for
sessions that are opened later, and touches none that is open.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from batchflow.errors import BlobNotFound
from batchflow.protocol import layout
from batchflow.protocol.variables import TaskVariables

if TYPE_CHECKING:
    from batchflow.ports.storage import Container
    from batchflow.protocol.documents import PoolManifest

_TOKEN: Final = 16
"""Random bytes in the name of a blob."""


class VariablesPool(Protocol):
    """The pool, as far as variables are brought into it."""

    @property
    def ctl(self) -> Container: ...

    @property
    def manifest(self) -> PoolManifest: ...

    async def refresh(self) -> None: ...

    async def change(self, change: Callable[[PoolManifest], PoolManifest]) -> None: ...


def new_blob(prefix: str) -> str:
    """Return the name of a new blob below a prefix, which none can guess."""
    return f"{prefix}{secrets.token_hex(_TOKEN)}.json"


async def store_variables(ctl: Container, prefix: str, variables: TaskVariables) -> str | None:
    """Store variables below a prefix; return their blob, None where there are none."""
    if not variables:
        return None
    blob = new_blob(prefix)
    await ctl.put(blob, variables.encode())
    return blob


async def read_variables(ctl: Container, blob: str | None) -> TaskVariables:
    """Read variables; None stands for none. Raises `BlobNotFound` where newer ones took their place."""
    return TaskVariables() if blob is None else TaskVariables.decode((await ctl.get(blob)).data)


async def change_pool_variables(
    pool: VariablesPool, change: Callable[[TaskVariables], TaskVariables]
) -> None:
    """Let sessions that are opened from now on have what `change` makes of the pool's variables."""
    present = await pool_variables(pool)
    if (wanted := change(present)) == present:
        return
    stored = await store_variables(pool.ctl, layout.pool_variables_prefix(), wanted)
    former: list[str | None] = []

    def point_to_them(manifest: PoolManifest) -> PoolManifest:
        former.append(manifest.variables)
        return replace(manifest, variables=stored)

    await pool.change(point_to_them)
    if former[-1] is not None:
        await pool.ctl.delete(former[-1])


async def pool_variables(pool: VariablesPool) -> TaskVariables:
    """Read the variables of a pool's tasks. Raises `StorageError`, `PoolNotFound`."""
    try:
        return await read_variables(pool.ctl, pool.manifest.variables)
    except BlobNotFound:
        await pool.refresh()  # another client has changed them since the manifest was read
        return await read_variables(pool.ctl, pool.manifest.variables)


class SessionVariables:
    """The variables of one session's tasks: its own, over those of its job, over those of its pool."""

    def __init__(self, own: TaskVariables, pool: VariablesPool, job: str, client: str) -> None:
        self._own = own
        self._pool = pool
        self._prefix = layout.session_variables_prefix(layout.session_blob(job, client))
        self.blob: str | None = None
        """Where the tasks find them; None: they have none."""

    async def prepare(self, job_blob: str | None) -> None:
        """Bring them into the pool. `job_blob`: where the job's variables are. Safe to cancel.

        Raises `StorageError`, and `ProtocolError` for variables that a later version wrote.
        """
        of_job = await read_variables(self._pool.ctl, job_blob)
        merged = self._own.over(of_job.over(await pool_variables(self._pool)))
        if merged:
            self.blob = new_blob(
                self._prefix
            )  # known before it is there, so that a cancelled opening removes it
            await self._pool.ctl.put(self.blob, merged.encode())
