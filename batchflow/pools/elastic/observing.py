"""What one client sees of an elastic pool: what Batch says of it, and what its policy decides on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchflow.pools.elastic.boots import BootRecords, boots_of
from batchflow.pools.scaling.values import Estimate, Observation
from batchflow.support.frozen import frozen
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from batchflow.pools.elastic.boots import BootHistory
    from batchflow.pools.reports.heartbeats import Sample
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.ports.compute import BatchTaskInfo, NodeInfo, PoolInfo
    from batchflow.protocol.documents import Heartbeat, ScalingLimits


@frozen
class BatchView:
    """What Batch says of the pool, and what is known of nodes like its own."""

    info: PoolInfo
    tasks: list[BatchTaskInfo]
    nodes: list[NodeInfo]
    history: BootHistory


@frozen
class AgentsView:
    """The living agents of the pool, as their heartbeats say; numbers are extrapolated from a sample."""

    beats: tuple[Heartbeat, ...] = ()
    """Of those that take tasks."""
    alive: int = 0
    ready: int = 0
    """Those that take tasks: they do not drain."""

    @classmethod
    def of(cls, sample: Sample) -> AgentsView:
        """Make it of the heartbeats that were read."""
        taking = tuple(beat for beat in sample.beats if beat.state != "draining")
        return cls(taking, sample.alive, sample.alive - (len(sample.beats) - len(taking)))

    @property
    def leaving(self) -> int:
        """How many drain: each ends its tasks on its node, and takes no new ones."""
        return self.alive - self.ready

    @property
    def running(self) -> int:
        """The tasks that run on agents that stay."""
        found = sum(len(beat.running) for beat in self.beats)
        return round(found * self.ready / len(self.beats)) if self.beats else 0

    @property
    def running_seconds(self) -> float:
        """How long these have run, on average."""
        ages = [max(0.0, beat.beat_at - task.since) for beat in self.beats for task in beat.running]
        return sum(ages) / len(ages) if ages else 0.0


class PoolObserver:
    """Looks at an elastic pool, and remembers what it needs to tell what has changed."""

    def __init__(self, runtime: PoolRuntime) -> None:
        self._runtime = runtime
        self.boots: BootRecords = BootRecords()
        self._spot_lost: frozenset[str] = frozenset()

    async def look(self) -> BatchView:
        """Return what Batch says of the pool now. Raises `ServiceError`."""
        runtime, compute = self._runtime, self._runtime.connections.compute
        tasks: list[BatchTaskInfo] = []
        nodes: list[NodeInfo] = []

        async def list_tasks() -> None:
            tasks.extend(await compute.tasks(runtime.manifest.agents_job))

        async def list_nodes() -> None:
            nodes.extend(await compute.nodes(runtime.pool_id))

        async with task_group() as group:  # at once, because the first task of a pool waits for it
            group.start_soon(list_tasks)
            group.start_soon(list_nodes)
            info = await compute.pool(runtime.pool_id)
        index = runtime.connections.manifests.index
        await self.boots.note(index, info, boots_of(tasks, nodes), runtime.manifest.slots)
        return BatchView(info, tasks, nodes, await self.boots.history(index, info))

    def observe(
        self,
        limits: ScalingLimits,
        agents: AgentsView,
        seen: BatchView | None,
        *,
        queued: int,
        outstanding: int,
        idle_exit: float,
        now: float,
    ) -> Observation:
        """Return what the policy decides on. `seen`: None for a client without rights on Batch.

        `queued`: messages of the task queues. `outstanding`: tasks of the client's own sessions.
        """
        runtime, running = self._runtime, agents.running
        total = max(outstanding, running, queued)
        seconds = runtime.load.task_seconds
        slots = runtime.manifest.slots or max((beat.slots for beat in agents.beats), default=0)
        history = None if seen is None else seen.history
        return Observation(
            now=now,
            limits=limits,
            waiting=total - running,
            running=running,
            ready=agents.ready,
            booting=() if seen is None else booting(seen.tasks, agents.alive, now),
            slots=slots or (0 if history is None else history.slots) or 1,
            task_seconds=None if seconds is None else Estimate(seconds),
            running_seconds=agents.running_seconds,
            boot_seconds=None if history is None else history.seconds,
            idle_exit=idle_exit,
            spot=0 if seen is None else seen.info.spot,
            spot_lost=0 if seen is None else self._newly_lost(seen.nodes),
            spot_refused=seen is not None and seen.info.spot < seen.info.spot_wanted and refused(seen.info),
        )

    async def queued(self) -> int:
        """Return the messages of the task queues, those that agents hold included. Raises `BrokerError`."""
        figures = await self._runtime.connections.figures(self._runtime.manifest.task_queues)
        return sum(each.active for each in figures)

    def _newly_lost(self, nodes: list[NodeInfo]) -> int:
        """Return how many spot nodes Azure has taken since this was asked last."""
        before, lost = self._spot_lost, [node.id for node in nodes if node.state == "preempted"]
        self._spot_lost = frozenset(lost)
        return len(self._spot_lost - before)


def refused(info: PoolInfo) -> bool:
    """Tell whether Batch gave the pool up before it had its size."""
    return info.allocation == "steady" and bool(info.resize_errors)


def booting(tasks: list[BatchTaskInfo], alive: int, now: float) -> tuple[float, ...]:
    """Return the ages of the agents that have no heartbeat yet: the youngest, as many as are missing."""
    there = [task for task in tasks if task.is_alive]
    ages = sorted(max(0.0, now - (task.created_at or now)) for task in there)
    return tuple(ages[: max(0, len(there) - alive)])
