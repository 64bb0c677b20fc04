"""Makes a pool smaller without breaking running tasks: the agents that leave hand back their tasks first.

Azure Batch has no signal for a task whose node is removed. So the leaving agents are told by a document, and
their nodes are removed by name when they have left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio

from batchflow.pools.heartbeats import read_heartbeats
from batchflow.protocol import layout
from batchflow.protocol.documents import DrainOrder
from batchflow.support.event_log import event_logger
from batchflow.support.progress_report import counted

if TYPE_CHECKING:
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.ports.compute import NodeInfo, PoolInfo
    from batchflow.protocol.documents import Heartbeat
    from batchflow.support.progress_report import Reporter

logger = event_logger(__name__)

_MOST: Final = 100
"""Nodes that Batch removes in one request."""
_POLL: Final = 0.25
_BEATS: Final = 3
"""Heartbeats within which an agent is gone when its grace is over."""


async def shrink(runtime: PoolRuntime, info: PoolInfo, size: tuple[int, int], report: Reporter) -> bool:
    """Shrink the pool to so many dedicated and spot nodes; the idlest nodes leave.

    Waits for `agent.drain_grace` and a little. Returns False, and does nothing, when the pool grows, does not
    have all its nodes, or when more than 100 nodes would leave.
    """
    nodes, spot = size
    if nodes > info.wanted or spot > info.spot_wanted or info.allocation != "steady":
        return False
    there = await runtime.connections.compute.nodes(runtime.pool_id)
    beats = {beat.node: beat for beat in await read_heartbeats(runtime.out)}
    dedicated = [node for node in there if node.dedicated]
    others = [node for node in there if not node.dedicated]
    if len(dedicated) != info.wanted or len(others) != info.spot_wanted:
        return False
    leaving = [
        *idlest(dedicated, beats, info.wanted - nodes),
        *idlest(others, beats, info.spot_wanted - spot),
    ]
    if not 0 < len(leaving) <= _MOST:
        return False
    await _drain(runtime, [beats[node] for node in leaving if node in beats], report)
    report(f"removing {counted(len(leaving), 'node')}")
    await runtime.connections.compute.remove_nodes(runtime.pool_id, leaving)
    return True


def idlest(nodes: list[NodeInfo], beats: dict[str, Heartbeat], count: int) -> list[str]:
    """Choose so many nodes: those without an agent first, then those with the fewest running tasks."""

    def work(node: NodeInfo) -> int:
        return len(beats[node.id].running) if node.id in beats else -1

    return [node.id for node in sorted(nodes, key=work)[:count]]


async def _drain(runtime: PoolRuntime, beats: list[Heartbeat], report: Reporter) -> None:
    """Tell the agents to leave, and wait until they have left or their time is over."""
    if not beats:
        return
    grace = runtime.settings.agent.drain_grace
    order = DrainOrder(runtime.manifest.agents_job, grace, tuple(beat.node for beat in beats))
    await runtime.ctl.put(layout.DRAIN_BLOB, order.encode())
    leaving = {beat.agent for beat in beats}
    with anyio.move_on_after(grace + _BEATS * max(beat.interval for beat in beats)) as patience:
        while left := [beat for beat in await read_heartbeats(runtime.out) if beat.agent in leaving]:
            running = sum(len(beat.running) for beat in left)
            report(f"{counted(len(left), 'agent')} still to leave, {counted(running, 'task')} running there")
            await anyio.sleep(_POLL)
    if patience.cancelled_caught:
        logger.warning("agents_did_not_leave_in_time", extra={"pool": runtime.pool_id})
