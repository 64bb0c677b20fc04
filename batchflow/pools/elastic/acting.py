"""What a client with rights on Batch does so that an elastic pool has the agents that are wished for.

It adds agent tasks, sets the pool's formula, removes broken nodes, and tells agents to drain. Nothing here
takes away a node that works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from batchflow.errors import NodeUnusable, PoolError, ServiceError, StartTaskFailed
from batchflow.pools.elastic.draining import order_to_drain
from batchflow.pools.elastic.observing import AgentsView, BatchView, refused
from batchflow.pools.elastic.quota import quota_note
from batchflow.pools.scaling.formula import FormulaWish, dates_of, is_ours, scaling_formula
from batchflow.ports.compute import START_TASK_FAILED
from batchflow.support.event_log import event_logger
from batchflow.support.frozen import frozen
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from batchflow.pools.elastic.boots import BootRecords
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.pools.scaling.wishes import MergedWish
    from batchflow.ports.compute import BatchTaskInfo, PoolInfo
    from batchflow.protocol.documents import ScalingLimits

logger = event_logger(__name__)

_COUNTED_INTERVALS: Final = 2
"""Evaluations for which agents that do not run yet are counted after the last client's last sign of life."""


@frozen
class Standing:
    """How far an elastic pool is on its way to the size that its work needs."""

    wanted: int = 0
    """Agents that are wanted now."""
    problem: ServiceError | None = None
    """Why no agent can come; None: they may."""
    notes: tuple[str, ...] = ()
    """What the user is to know."""
    patience: float = 0.0
    """Seconds in which agents that were asked for are there, as far as boots of such nodes were seen."""


class WishExecutor:
    """Brings the agents, the nodes and the formula of one pool to what is wished for."""

    def __init__(
        self,
        runtime: PoolRuntime,
        boots: BootRecords,
        start_agents: Callable[[int], Coroutine[Any, Any, None]],
    ) -> None:
        """`start_agents`: adds agent tasks until there are so many, within the pool's limits."""
        self._runtime = runtime
        self._boots = boots
        self._start_agents = start_agents
        self.gave_up: bool = False
        """Whether all nodes were found broken: no more are asked for until the user does."""

    @property
    def _interval(self) -> float:
        return self._runtime.settings.pool.autoscale_interval

    async def carry_out(
        self, merged: MergedWish, seen: BatchView, agents: AgentsView, now: float
    ) -> Standing:
        """Bring the pool to what is wished for. Agents that drain hold nodes beside the wanted ones.

        Raises `ServiceError`.
        """
        limits = self._runtime.manifest.elastic
        if limits is None:
            return Standing()
        wanted = max(limits.least, min(limits.most, merged.agents))
        if not is_ours(seen.info.formula):
            await self._start_agents(wanted)
            return Standing(seen.info.target, notes=(foreign_size(seen.info),))
        if (problem := self._broken(seen, agents.ready)) is not None:
            return Standing(wanted, problem)
        await self._remove_broken(seen)
        notes = await self._quota_notes(seen, limits)
        if wanted:
            there = min(limits.most, wanted + agents.leaving)
            async with task_group() as group:
                group.start_soon(self._start_agents, there)
                await self._set_formula(merged, there, limits, seen, now)
            await self._drop_waiting(seen.tasks, there)
        boot = seen.history.seconds
        return Standing(wanted, notes=notes, patience=0.0 if boot is None else boot.mean + boot.deviation)

    async def drain(self, agents: AgentsView, seen: BatchView, count: int, kept: int) -> None:
        """Tell so many agents to drain, the least busy first; `kept`: of dedicated nodes, at least.

        Raises `StorageError`.
        """
        if count <= 0 or not is_ours(seen.info.formula):
            return
        dedicated = {node.id for node in seen.nodes if node.dedicated}
        runtime = self._runtime
        await order_to_drain(
            runtime.ctl, runtime.manifest.agents_job, agents.beats, count, dedicated=dedicated, kept=kept
        )

    async def _drop_waiting(self, tasks: list[BatchTaskInfo], wanted: int) -> None:
        """Delete the agents that wait for a node and are wanted no more: Batch would count them."""
        alive = sum(task.is_alive for task in tasks)
        waiting = [task for task in tasks if task.waits_for_node]
        compute, job = self._runtime.connections.compute, self._runtime.manifest.agents_job
        for task in waiting[: max(0, alive - wanted)]:
            await compute.delete_task(job, task.id)

    async def _set_formula(
        self, merged: MergedWish, wanted: int, limits: ScalingLimits, seen: BatchView, now: float
    ) -> None:
        """Enable the formula anew when it asks for too few nodes, or counts agents for too short a time.

        Batch takes none while nodes leave. Those that wait for their agents may do so for hours, so that
        resize is stopped when the pool is to grow: its nodes stay, and leave when their agents have.
        """
        info, counted_until = seen.info, dates_of(seen.info.formula).counted_until
        if wanted <= info.target and counted_until - now > self._interval:
            return
        compute, pool_id = self._runtime.connections.compute, self._runtime.pool_id
        if wanted > info.target and info.allocation == "resizing" and info.size > info.target:
            await compute.stop_resize(pool_id)
            logger.info("resize_stopped", extra={"pool": pool_id, "target": info.target, "agents": wanted})
        spot = min(merged.spot, limits.max_spot)
        wish = FormulaWish(
            wanted - spot, spot, now + self._interval, now + _COUNTED_INTERVALS * self._interval
        )
        text = scaling_formula(limits, wish, self._interval)
        taken = await compute.enable_autoscale(pool_id, text, self._interval)
        logger.info(
            "formula_set", extra={"pool": pool_id, "agents": wanted, "taken": taken, "why": merged.why}
        )

    def _broken(self, seen: BatchView, ready: int) -> ServiceError | None:
        """Return the error of a pool whose nodes are all broken: then no more of them are asked for."""
        broken = [node for node in seen.nodes if node.has_failed]
        if ready or (seen.nodes and len(broken) < len(seen.nodes)):
            self.gave_up = False
        elif broken:
            self.gave_up = True
        if not self.gave_up:
            return None
        kind = StartTaskFailed if any(node.state == START_TASK_FAILED for node in broken) else NodeUnusable
        return kind(f"all nodes of pool {self._runtime.pool_id!r} are broken, and no more are asked for")

    async def _remove_broken(self, seen: BatchView) -> None:
        """Remove the broken nodes of a pool that has others: they cost money and run nothing."""
        broken = [node.id for node in seen.nodes if node.has_failed]
        if not broken or seen.info.allocation != "steady":
            return
        told = {"pool": self._runtime.pool_id, "nodes": len(broken)}
        try:
            await self._runtime.connections.compute.remove_nodes(self._runtime.pool_id, broken)
        except PoolError as error:  # they are left to the formula; the pool grows all the same
            logger.warning("broken_nodes_stay", extra=told | {"error": str(error)})
        else:
            logger.info("broken_nodes_removed", extra=told)

    async def _quota_notes(self, seen: BatchView, limits: ScalingLimits) -> tuple[str, ...]:
        """Note where the account's quota ends, for pools that are made later."""
        info, there = seen.info, seen.info.size
        index = self._runtime.connections.manifests.index
        if not refused(info) or not any(fault.is_quota for fault in info.resize_errors):
            if seen.history.refused is not None and there > seen.history.refused:
                await self._boots.note_refusal(index, info, None)
            return ()
        await self._boots.note_refusal(index, info, there)
        return (quota_note(limits, there),)


def foreign_size(info: PoolInfo) -> str:
    """Say why batchflow does not choose the size of an elastic pool."""
    if info.autoscale:
        return "the pool has a formula that batchflow did not write: it is left alone, and decides the size"
    kept = f"it keeps its {info.target} nodes until await pool.resize(max_nodes=...)"
    return f"the pool was resized by hand: {kept}"
