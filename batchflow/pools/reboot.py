"""A pool's nodes booted anew, one after the other, so that a changed start task takes effect."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import anyio

from batchflow.errors import ConfigurationError, NodeUnusable, PoolError, StartTaskFailed
from batchflow.pools import pool_spec

if TYPE_CHECKING:
    from batchflow.model import PoolSpec
    from batchflow.pool import Pool
    from batchflow.ports.compute import NodeInfo
    from batchflow.support.progress_report import Reporter

_POLL: Final = 0.25
_AT_WORK: Final = ("idle", "running")
_FAILED: Final = {"starttaskfailed": StartTaskFailed, "unusable": NodeUnusable}


async def change_start_task(pool: Pool, spec: PoolSpec) -> None:
    """Give the pool the spec's start task. Raises `ConfigurationError` for a pool of somebody else's."""
    if not pool.runtime.manifest.owned:
        raise ConfigurationError(
            f"pool {pool.id!r} was not made by batchflow: its start task is not ours to change; reset=True "
            "without a spec only boots its nodes anew"
        )
    compute = pool.runtime.connections.compute
    images = await compute.images()
    spec = replace(spec, id=pool.id)
    await compute.change_start_task(pool_spec.build(spec, pool.client.settings.pool, images, time.time()))


async def reboot_all(pool: Pool, report: Reporter) -> None:
    """Boot each node and wait until it works again before the next one goes: the others serve meanwhile.

    A node that does not come back ends it with the pool's explanation; the nodes after it are untouched.
    """
    nodes = await pool.runtime.connections.compute.nodes(pool.id)
    for number, node in enumerate(nodes, 1):
        await _reboot(pool, node.id, f"node {number} of {len(nodes)}, {node.id}", report)


async def _reboot(pool: Pool, node_id: str, name: str, report: Reporter) -> None:
    compute = pool.runtime.connections.compute
    try:
        await compute.reboot_node(pool.id, node_id)
    except PoolError:
        if await _find(pool, node_id) is None:
            return  # it has left the pool meanwhile
        raise
    report(f"{name}: is told to boot anew")
    while (node := await _find(pool, node_id)) is not None and node.state not in _AT_WORK:
        report(f"{name}: {node.state}")
        if (kind := _FAILED.get(node.state)) is not None:
            raise kind(f"pool {pool.id!r}: node {node_id} did not come back. {await pool.explain()}")
        await anyio.sleep(_POLL)
    report(f"{name}: {'has left the pool' if node is None else 'works again'}")


async def _find(pool: Pool, node_id: str) -> NodeInfo | None:
    nodes = await pool.runtime.connections.compute.nodes(pool.id)
    return next((node for node in nodes if node.id == node_id), None)
