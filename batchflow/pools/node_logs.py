"""The logs of agents: in their pool while it exists, and kept for a month afterwards.

Agents append to their own log in the pool's output container, as their rights allow. Before that container
is removed, by `Pool.delete` or a sweep, the logs are copied into the account's own container, where agents
have no rights. A sweep removes them when `KEPT` seconds have passed. An interrupted copy can be repeated.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from batchflow.errors import BlobConflict, BlobNotFound
from batchflow.protocol.layout import LOGS
from batchflow.support.frozen import frozen
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from batchflow.ports.storage import BlobInfo, Container

KEPT: Final = 30 * 86400.0
"""Seconds."""
_AT_ONCE: Final = 8
"""Logs that are copied at the same time."""


@frozen
class NodeLog:
    """The log of one agent, from its start to its end, or a part of a very long one."""

    pool: str
    node: str
    agent: str
    """The agent's incarnation."""
    kept: bool
    """Whether its pool is gone."""
    modified_at: float
    """Seconds since the epoch; of a kept one: when it was kept."""
    size: int
    """Bytes."""
    name: str
    """The blob's."""
    _container: Container = field(repr=False)

    async def read(self) -> str:
        """Read the lines, each a JSON object with an event. Raises `BlobNotFound` when the log is gone."""
        return (await self._container.get(self.name)).data.decode(errors="replace")


async def keep(out: Container, index: Container, prefix: str) -> None:
    """Copy the logs of the pool of that prefix, whose output container is about to go."""
    limit = anyio.CapacityLimiter(_AT_ONCE)
    generation = prefix.rpartition("-")[2]

    async def copy(info: BlobInfo) -> None:
        _, pool, rest = info.name.split("/", 2)
        path = folder / info.name.replace("/", "_")
        async with limit:
            await out.download(info.name, path)
            await index.upload(f"{LOGS}{pool}/{generation}/{rest}", path)
            path.unlink()

    with tempfile.TemporaryDirectory(prefix="batchflow-logs-") as name:
        folder = Path(name)
        async with task_group() as group:
            for info in await _listed(out, LOGS):
                if info.name.count("/") == 3:  # what a node wrote under another name is no log of an agent
                    group.start_soon(copy, info)


async def find(out: Container | None, index: Container, pool: str | None) -> AsyncIterator[NodeLog]:
    """Iterate over the logs in a pool's output container, and the kept ones (None: of all pools)."""
    prefix = f"{LOGS}{pool.lower()}/" if pool else LOGS
    places = [(index, True)] if out is None else [(index, True), (out, False)]
    for container, kept in places:
        for info in sorted(await _listed(container, prefix), key=lambda info: info.modified_at):
            if info.name.count("/") > 2:
                yield _log(info, container, kept)


def _log(info: BlobInfo, container: Container, kept: bool) -> NodeLog:
    _, pool, *_, node, file = info.name.split("/")
    agent = file.partition(".")[0]
    return NodeLog(pool, node, agent, kept, info.modified_at, info.size, info.name, container)


async def _listed(container: Container, prefix: str) -> list[BlobInfo]:
    try:
        return [info async for info in container.list(prefix)]
    except (BlobNotFound, BlobConflict):
        return []  # the container is gone, or on its way
