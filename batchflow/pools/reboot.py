"""Reboots a pool's nodes, one after the other, so that a changed start task takes effect."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import anyio

from batchflow.errors import ConfigurationError, NodeUnusable, PoolError, StartTaskFailed
from batchflow.pools import pool_spec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batchflow.model import Explanation, PoolSpec
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.ports.compute import NodeInfo
    from batchflow.support.progress_report import Reporter

_POLL: Final = 0.25
_AT_WORK: Final = ("idle", "running")
_FAILED: Final[dict[str, type[PoolError]]] = {"starttaskfailed": StartTaskFailed, "unusable": NodeUnusable}


async def change_start_task(runtime: PoolRuntime, spec: PoolSpec) -> None:
    """Give the pool the spec's start task. Raises `ConfigurationError` if batchflow did not create it."""
    if not runtime.manifest.owned:
        raise ConfigurationError(
            f"pool {runtime.pool_id!r} was not made by batchflow: its start task cannot be changed; "
            "reset=True without a spec only boots its nodes anew"
        )
    compute = runtime.connections.compute
    images = await compute.images()
    spec = replace(spec, id=runtime.pool_id)
    await compute.change_start_task(pool_spec.build(spec, runtime.settings.pool, images, time.time()))


async def reboot_all(
    runtime: PoolRuntime, report: Reporter, explain: Callable[[], Awaitable[Explanation]]
) -> None:
    """Reboot each node, and wait until it works again before the next one: the others serve meanwhile.

    Raises the pool's explanation for a node that does not come back; the nodes after it are not rebooted.
    """
    nodes = await runtime.connections.compute.nodes(runtime.pool_id)
    for number, node in enumerate(nodes, 1):
        failed = await _reboot(runtime, node.id, f"node {number} of {len(nodes)}, {node.id}", report)
        if failed is not None:
            what = f"pool {runtime.pool_id!r}: node {node.id} did not come back"
            raise failed(f"{what}. {await explain()}")


async def _reboot(runtime: PoolRuntime, node_id: str, name: str, report: Reporter) -> type[PoolError] | None:
    """Boot one node. Returns the error of a node that does not come back, None for one that works or left."""
    compute = runtime.connections.compute
    try:
        await compute.reboot_node(runtime.pool_id, node_id)
    except PoolError:
        if await _find(runtime, node_id) is None:
            return None  # it has left the pool meanwhile
        raise
    report(f"{name}: is told to boot anew")
    while (node := await _find(runtime, node_id)) is not None and node.state not in _AT_WORK:
        report(f"{name}: {node.state}")
        if (kind := _FAILED.get(node.state)) is not None:
            return kind
        await anyio.sleep(_POLL)
    report(f"{name}: {'has left the pool' if node is None else 'works again'}")
    return None


async def _find(runtime: PoolRuntime, node_id: str) -> NodeInfo | None:
    nodes = await runtime.connections.compute.nodes(runtime.pool_id)
    return next((node for node in nodes if node.id == node_id), None)
