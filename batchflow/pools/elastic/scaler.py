"""Brings an elastic pool to the size that its work needs, as far as one client can.

A client decides by `scaling.policy` and writes its wish. If it may act on Batch, it also carries out the
greatest of all clients' wishes: it adds agent tasks, and sets the pool's formula. Azure owns the size, the
clients own the number of wanted agents, and agents own their leaving. So nothing here takes away a node that
works.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, Final

import anyio

from batchflow.errors import NodeUnusable, PoolError, ServiceError, StartTaskFailed
from batchflow.pools.agent_launch import idle_exit
from batchflow.pools.elastic.boots import BootRecords, boots_of
from batchflow.pools.elastic.keepers import keeper_lives
from batchflow.pools.elastic.wish_store import WishStore
from batchflow.pools.scaling.formula import FormulaWish, dates_of, is_ours, scaling_formula
from batchflow.pools.scaling.policy import decide
from batchflow.pools.scaling.values import Estimate, Observation, ScalingMemory
from batchflow.pools.scaling.wishes import MergedWish, Wish, merge
from batchflow.ports.compute import START_TASK_FAILED
from batchflow.support.event_log import event_logger
from batchflow.support.frozen import frozen
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from batchflow.pools.elastic.boots import BootHistory
    from batchflow.pools.reports.heartbeats import Sample
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.ports.compute import BatchTaskInfo, NodeInfo, PoolInfo
    from batchflow.protocol.documents import ScalingLimits

logger = event_logger(__name__)

_FEWEST_SECONDS: Final = 0.5
"""Seconds for which what one session of the client has found serves its other sessions."""
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


@frozen
class _Seen:
    """What Batch says of the pool."""

    info: PoolInfo
    tasks: list[BatchTaskInfo]
    nodes: list[NodeInfo]
    history: BootHistory


class PoolScaler:
    """One client's part in the size of one elastic pool."""

    def __init__(
        self, runtime: PoolRuntime, start_agents: Callable[[int], Coroutine[Any, Any, None]]
    ) -> None:
        """`start_agents`: adds agent tasks until there are so many, within the pool's limits."""
        self._runtime = runtime
        self._start_agents = start_agents
        self._who = uuid.uuid4().hex[:12]
        self._wishes = WishStore()
        self._boots = BootRecords()
        self._written: Wish | None = None
        self._memory = ScalingMemory()
        self._turn = anyio.Lock()
        self._last = Standing()
        self._last_at = float("-inf")
        self._last_outstanding = 0
        self._gave_up = False
        """Whether all nodes were found broken: no more are asked for until the user does."""
        self._spot_lost: frozenset[str] = frozenset()

    @property
    def limits(self) -> ScalingLimits | None:
        """The bounds of the pool; None: its size is fixed."""
        return self._runtime.manifest.elastic

    @property
    def idle_exit(self) -> float:
        """Seconds without a task after which the pool's agents leave."""
        setting = self._runtime.settings.agent.idle_exit
        return idle_exit(setting, elastic=True) or 0.0

    @property
    def _interval(self) -> float:
        return self._runtime.settings.pool.autoscale_interval

    # ---- what the client wants

    async def step(self, sample: Sample) -> Standing:
        """Decide how many agents are wanted, tell it, and bring it about. `sample`: of the heartbeats.

        Several sessions of a client may call it as often as they like. Raises `ServiceError`.
        """
        async with self._turn:
            outstanding = self._outstanding()
            age = time.monotonic() - self._last_at
            if age < _FEWEST_SECONDS and outstanding <= self._last_outstanding:
                return self._last
            standing = await self._step(sample, outstanding)
            self._last, self._last_at = standing, time.monotonic()
            self._last_outstanding = outstanding
            return standing

    async def want(self, agents: int) -> Standing:
        """Ask for so many agents, whatever work there is, for as long as a wish lasts."""
        async with self._turn:
            self._gave_up = False
            now, limits = time.time(), self.limits
            if limits is None:
                return Standing()
            bounded = max(limits.least, min(limits.most, agents))
            spot = max(limits.min_spot, bounded - limits.max_nodes)
            wish = self._new_wish(now, bounded, bounded - spot, "they were asked for", self._memory)
            await self._write(wish, now)
            return await self._act(await self._merged(now), None, now)

    async def serve(self) -> Standing:
        """Carry out what other clients wish for, of a client that wants nothing itself."""
        async with self._turn:
            now = time.time()
            merged = await self._merged(now)
            if not merged.agents:
                return Standing()
            return await self._act(merged, None, now)

    async def let_go(self) -> bool:
        """Take a pool without agents to its least size at once, unless a client wants some.

        Its formula does so too, an evaluation later. False: Batch does not take it now.
        """
        async with self._turn:
            limits = self.limits
            if limits is None or self._runtime.connections.restricted:
                return True
            now = time.time()
            compute, pool_id = self._runtime.connections.compute, self._runtime.pool_id
            info = await compute.pool(pool_id)
            if not is_ours(info.formula) or info.target <= limits.least:
                return True
            if (await self._merged(now)).agents > limits.least:
                return True
            until = now + self._interval
            text = scaling_formula(limits, FormulaWish(0, 0, until, until), self._interval)
            return await compute.enable_autoscale(pool_id, text, self._interval)

    def _outstanding(self) -> int:
        """Return how many tasks of the client's sessions have no outcome."""
        counts = [session.counts() for session in self._runtime.open_sessions]
        return sum(each.sending + each.queued for each in counts)

    async def _step(self, sample: Sample, outstanding: int) -> Standing:
        limits, now = self.limits, time.time()
        if limits is None:
            return Standing()
        restricted = self._runtime.connections.restricted
        seen = None if restricted else await self._look()
        observation = await self._observe(limits, sample, outstanding, seen, now)
        decision = decide(observation, self._memory)
        self._memory = decision.memory
        if observation.waiting + observation.running:
            wish = self._new_wish(now, decision.agents, decision.dedicated, decision.why, decision.memory)
            await self._write(wish, now)
        merged = await self._merged(now)
        if seen is None:
            return await self._stand_by(merged, sample)
        return await self._act(merged, seen, now, ready=sample.alive)

    async def _stand_by(self, merged: MergedWish, sample: Sample) -> Standing:
        """Return how far a client is that must leave Batch to others."""
        if sample.alive or not merged.agents or await keeper_lives(self._runtime.ctl):
            return Standing(merged.agents)
        text = (
            f"pool {self._runtime.pool_id!r} has no agents, and this client may not start nodes (settings "
            "access.*): open a session of the pool with a client that has the accounts' keys, or a role in "
            "Entra ID"
        )
        return Standing(merged.agents, PoolError(text, retryable=True))

    # ---- what is seen

    async def _look(self) -> _Seen:
        runtime, compute = self._runtime, self._runtime.connections.compute
        info = await compute.pool(runtime.pool_id)
        tasks = await compute.tasks(runtime.manifest.agents_job)
        nodes = await compute.nodes(runtime.pool_id)
        index = runtime.connections.manifests.index
        await self._boots.note(index, info, boots_of(tasks, nodes), runtime.manifest.slots)
        return _Seen(info, tasks, nodes, await self._boots.history(index, info))

    async def _observe(
        self, limits: ScalingLimits, sample: Sample, outstanding: int, seen: _Seen | None, now: float
    ) -> Observation:
        runtime, beats = self._runtime, sample.beats
        scale = sample.alive / len(beats) if beats else 0.0
        running = round(sum(len(beat.running) for beat in beats) * scale)
        ages = [max(0.0, beat.beat_at - task.since) for beat in beats for task in beat.running]
        total = max(outstanding, running)
        if seen is not None:
            total = max(total, await self._queued())
        seconds = runtime.load.task_seconds
        slots = runtime.manifest.slots or max((beat.slots for beat in beats), default=0)
        history = None if seen is None else seen.history
        return Observation(
            now=now,
            limits=limits,
            waiting=total - running,
            running=running,
            ready=sample.alive,
            booting=() if seen is None else _booting(seen.tasks, sample.alive, now),
            slots=slots or (0 if history is None else history.slots) or 1,
            task_seconds=None if seconds is None else Estimate(seconds),
            running_seconds=sum(ages) / len(ages) if ages else 0.0,
            boot_seconds=None if history is None else history.seconds,
            idle_exit=self.idle_exit,
            spot=0 if seen is None else seen.info.spot,
            spot_lost=0 if seen is None else self._newly_lost(seen.nodes),
            spot_refused=seen is not None and seen.info.spot < seen.info.spot_wanted and _refused(seen.info),
        )

    async def _queued(self) -> int:
        """Return the messages of the task queues, those that agents hold included."""
        services, queues = self._runtime.connections, self._runtime.manifest.task_queues
        return sum([(await services.admin_of(queue).figures(queue.entity)).active for queue in queues])

    def _newly_lost(self, nodes: list[NodeInfo]) -> int:
        """Return how many spot nodes Azure has taken since this was asked last."""
        before, lost = self._spot_lost, [node.id for node in nodes if node.state == "preempted"]
        self._spot_lost = frozenset(lost)
        return len(self._spot_lost - before)

    # ---- wishes

    def _new_wish(self, now: float, agents: int, dedicated: int, why: str, memory: ScalingMemory) -> Wish:
        return Wish(self._who, agents, now, now + self._interval, dedicated, why, memory)

    async def _write(self, wish: Wish, now: float) -> None:
        """Write this client's wish, unless the one that is there says the same for a while."""
        last = self._written
        same = last is not None and (last.agents, last.dedicated) == (wish.agents, wish.dedicated)
        if last is not None and same and last.until - now > self._interval / 2:
            return
        await self._wishes.write(self._runtime.ctl, wish)
        self._written = wish

    async def _merged(self, now: float) -> MergedWish:
        return merge(await self._wishes.read_all(self._runtime.ctl), now)

    # ---- what is done on Batch

    async def _act(self, merged: MergedWish, seen: _Seen | None, now: float, *, ready: int = 0) -> Standing:
        """Bring the pool's agents and its formula to what is wanted."""
        seen = seen or await self._look()
        limits = self.limits
        if limits is None:
            return Standing()
        wanted = max(limits.least, min(limits.most, merged.agents))
        if not is_ours(seen.info.formula):
            await self._start_agents(wanted)
            return Standing(seen.info.target, notes=(foreign_size(seen.info),))
        if (problem := self._broken(seen, ready)) is not None:
            return Standing(wanted, problem)
        await self._remove_broken(seen)
        notes = await self._quota_notes(seen, limits)
        if wanted:
            async with task_group() as group:
                group.start_soon(self._start_agents, wanted)
                await self._set_formula(merged, wanted, limits, seen, now)
            await self._drop_waiting(seen.tasks, wanted)
        boot = seen.history.seconds
        return Standing(wanted, notes=notes, patience=0.0 if boot is None else boot.mean + boot.deviation)

    async def _drop_waiting(self, tasks: list[BatchTaskInfo], wanted: int) -> None:
        """Delete the agents that wait for a node and are wanted no more: Batch would count them."""
        alive = sum(task.is_alive for task in tasks)
        waiting = [task for task in tasks if task.waits_for_node]
        compute, job = self._runtime.connections.compute, self._runtime.manifest.agents_job
        for task in waiting[: max(0, alive - wanted)]:
            await compute.delete_task(job, task.id)

    async def _set_formula(
        self, merged: MergedWish, wanted: int, limits: ScalingLimits, seen: _Seen, now: float
    ) -> None:
        """Enable the formula anew when it asks for too few nodes, or counts agents for too short a time."""
        counted_until = dates_of(seen.info.formula).counted_until
        if wanted <= seen.info.target and counted_until - now > self._interval:
            return
        spot = min(merged.spot, limits.max_spot)
        wish = FormulaWish(
            wanted - spot, spot, now + self._interval, now + _COUNTED_INTERVALS * self._interval
        )
        text = scaling_formula(limits, wish, self._interval)
        compute, pool_id = self._runtime.connections.compute, self._runtime.pool_id
        taken = await compute.enable_autoscale(pool_id, text, self._interval)
        logger.info(
            "formula_set", extra={"pool": pool_id, "agents": wanted, "taken": taken, "why": merged.why}
        )

    def _broken(self, seen: _Seen, ready: int) -> ServiceError | None:
        """Return the error of a pool whose nodes are all broken: then no more of them are asked for."""
        broken = [node for node in seen.nodes if node.has_failed]
        if ready or (seen.nodes and len(broken) < len(seen.nodes)):
            self._gave_up = False
        elif broken:
            self._gave_up = True
        if not self._gave_up:
            return None
        kind = StartTaskFailed if any(node.state == START_TASK_FAILED for node in broken) else NodeUnusable
        return kind(f"all nodes of pool {self._runtime.pool_id!r} are broken, and no more are asked for")

    async def _remove_broken(self, seen: _Seen) -> None:
        """Remove the broken nodes of a pool that has others: they cost money and run nothing."""
        broken = [node.id for node in seen.nodes if node.has_failed]
        if broken and seen.info.allocation == "steady":
            await self._runtime.connections.compute.remove_nodes(self._runtime.pool_id, broken)
            logger.info("broken_nodes_removed", extra={"pool": self._runtime.pool_id, "nodes": len(broken)})

    async def _quota_notes(self, seen: _Seen, limits: ScalingLimits) -> tuple[str, ...]:
        """Note where the account's quota ends, for pools that are made later."""
        info, there = seen.info, seen.info.size
        index = self._runtime.connections.manifests.index
        if not _refused(info) or not any(fault.is_quota for fault in info.resize_errors):
            if seen.history.refused is not None and there > seen.history.refused:
                await self._boots.note_refusal(index, info, None)
            return ()
        await self._boots.note_refusal(index, info, there)
        return (quota_note(limits, there),)


def _refused(info: PoolInfo) -> bool:
    return info.allocation == "steady" and bool(info.resize_errors)


def _booting(tasks: list[BatchTaskInfo], ready: int, now: float) -> tuple[float, ...]:
    """Return the ages of the agents that have no heartbeat yet: the youngest, as many as are missing."""
    alive = [task for task in tasks if task.is_alive]
    ages = sorted(max(0.0, now - (task.created_at or now)) for task in alive)
    return tuple(ages[: max(0, len(alive) - ready)])


def foreign_size(info: PoolInfo) -> str:
    """Say why batchflow does not choose the size of an elastic pool."""
    if info.autoscale:
        return "the pool has a formula that batchflow did not write: it is left alone, and decides the size"
    kept = f"it keeps its {info.target} nodes until await pool.resize(max_nodes=...)"
    return f"the pool was resized by hand: {kept}"


def quota_note(limits: ScalingLimits, there: int) -> str:
    """Say that the account's quota is below what a pool may grow to."""
    return (
        f"the Batch account's quota allows {there} nodes, and the pool may grow to {limits.most}: "
        "raise the quota of cores in the Azure portal, or take a smaller VM size"
    )
