"""Makes a pool smaller without breaking running tasks, and lets it grow and shrink with its work or not.

The agents that leave hand back their tasks first.

Azure Batch has no signal for a task whose node is removed. So the leaving agents are told by a document, and
their nodes are removed by name when they have left.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import anyio

from batchflow.errors import PoolError
from batchflow.pools.drain_orders import drain
from batchflow.pools.reports.heartbeats import read_heartbeats
from batchflow.pools.scaling.formula import FormulaWish, is_ours, scaling_formula
from batchflow.support.event_log import event_logger
from batchflow.support.progress_report import counted

if TYPE_CHECKING:
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.ports.compute import NodeInfo, PoolInfo
    from batchflow.protocol.documents import Heartbeat, ScalingLimits
    from batchflow.support.progress_report import Reporter

logger = event_logger(__name__)

_MOST: Final = 100
"""Nodes that Batch removes in one request."""
_POLL: Final = 0.25
_FORMULA_PAUSES: Final = (0.25, 5.0)
"""The first and the longest pause, in seconds, between two tries to set a formula."""
_FORMULA_TIMEOUT: Final = 1200.0
"""Seconds in which a resize has ended: Batch gives it up after 15 minutes."""
_BEATS: Final = 3
"""Heartbeats within which an agent is gone when its grace is over."""


async def take_formula(runtime: PoolRuntime, info: PoolInfo) -> PoolInfo:
    """Give an elastic pool a fixed size: the one that it has. Raises `PoolError` for a formula of others."""
    _check_formula(info)
    if runtime.manifest.elastic is not None:
        await runtime.change(lambda manifest: replace(manifest, elastic=None))
    if not info.autoscale:
        return info
    compute = runtime.connections.compute
    await compute.disable_autoscale(runtime.pool_id)
    return await compute.pool(runtime.pool_id)


async def set_limits(runtime: PoolRuntime, limits: ScalingLimits, report: Reporter) -> None:
    """Make a pool elastic, or give it other limits; return when Batch has its formula.

    The pool keeps its nodes for one evaluation, so that agents can be counted. Batch takes no formula while
    the pool resizes. Raises `PoolError` for a formula of others, and when Batch does not take ours for long.
    """
    compute, interval = runtime.connections.compute, runtime.settings.pool.autoscale_interval
    _check_formula(await compute.pool(runtime.pool_id))
    await runtime.change(lambda manifest: replace(manifest, elastic=limits))
    pause = _FORMULA_PAUSES[0]
    with anyio.move_on_after(_FORMULA_TIMEOUT):
        while True:
            info, now = await compute.pool(runtime.pool_id), time.time()
            until = now + interval
            wish = FormulaWish(
                min(info.wanted, limits.max_nodes), min(info.spot_wanted, limits.max_spot), until, until
            )
            if await compute.enable_autoscale(
                runtime.pool_id, scaling_formula(limits, wish, interval), interval
            ):
                return
            report("the pool's size changes; its formula is set after that")
            await anyio.sleep(pause)
            pause = min(_FORMULA_PAUSES[1], pause * 2)
    text = f"Batch has taken no formula for pool {runtime.pool_id!r} for {_FORMULA_TIMEOUT / 60:.0f} minutes"
    raise PoolError(f"{text}, because it resizes: try again", retryable=True)


def _check_formula(info: PoolInfo) -> None:
    if info.autoscale and not is_ours(info.formula):
        text = f"pool {info.id!r} has a formula that batchflow did not write, and that is left alone"
        raise PoolError(f"{text}: take it off in the Azure portal (Scale, Fixed), then resize again")


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
    await _drain(runtime, [beats[node] for node in leaving if node in beats], list(beats.values()), report)
    report(f"removing {counted(len(leaving), 'node')}")
    await runtime.connections.compute.remove_nodes(runtime.pool_id, leaving)
    return True


def idlest(nodes: list[NodeInfo], beats: dict[str, Heartbeat], count: int) -> list[str]:
    """Choose so many nodes: those without an agent first, then those with the fewest running tasks."""

    def work(node: NodeInfo) -> int:
        return len(beats[node.id].running) if node.id in beats else -1

    return [node.id for node in sorted(nodes, key=work)[:count]]


async def _drain(
    runtime: PoolRuntime, beats: list[Heartbeat], alive: list[Heartbeat], report: Reporter
) -> None:
    """Tell the agents to leave, and wait until they have left or their time is over."""
    if not beats:
        return
    grace = runtime.settings.agent.drain_grace
    await drain(runtime.ctl, runtime.manifest.agents_job, grace, leaving=beats, alive=alive)
    leaving = {beat.agent for beat in beats}
    with anyio.move_on_after(grace + _BEATS * max(beat.interval for beat in beats)) as patience:
        while left := [beat for beat in await read_heartbeats(runtime.out) if beat.agent in leaving]:
            running = sum(len(beat.running) for beat in left)
            report(f"{counted(len(left), 'agent')} still to leave, {counted(running, 'task')} running there")
            await anyio.sleep(_POLL)
    if patience.cancelled_caught:
        logger.warning("agents_did_not_leave_in_time", extra={"pool": runtime.pool_id})
