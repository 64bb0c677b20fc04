"""Starts, drains and stops the agents of one pool, also when the pool changes its size."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import anyio

from batchflow.errors import PoolError, PoolNotFound
from batchflow.pools import agent_job, agent_launch
from batchflow.pools.reports.heartbeats import read_heartbeats
from batchflow.pools.resize import set_limits, shrink, take_formula
from batchflow.pools.scaling.formula import is_ours
from batchflow.pools.spending.budgets import spent_reason
from batchflow.protocol import layout
from batchflow.protocol.documents import DrainOrder
from batchflow.support.event_log import event_logger
from batchflow.support.progress_report import counted
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchflow.files import BundleSource
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.ports.compute import BatchTaskInfo, PoolInfo
    from batchflow.protocol.documents import Heartbeat, PoolManifest, ScalingLimits
    from batchflow.support.progress_report import Reporter

logger = event_logger(__name__)

_POLL: float = 0.25
"""Seconds between two looks at the heartbeats of draining agents."""
_DRAIN_SLACK: float = 10.0
"""Seconds, beyond the grace, for handing back and for the last results; also for the first heartbeats."""
_STDERR_TAIL: Final = 32_000
"""Bytes at the end of an agent's stderr that are read."""
_STDERR_TRIES: Final = 20
_STDERR_PAUSE: Final = 0.1
"""Seconds, on average, between two tries."""


class PoolAgents:
    """Starts and stops the agents of one pool."""

    def __init__(
        self, runtime: PoolRuntime, *, made_here: bool = False, sources: Sequence[BundleSource] = ()
    ) -> None:
        """`made_here`: this client created the pool, so its containers have the policies that agents need.

        `sources`: local files; those of the default bundle need not be fetched from Blob Storage.
        """
        self._runtime = runtime
        self._made_here = made_here
        self._sources = sources
        """Kept until agents are started, or found alive."""
        self._launch: agent_launch.LaunchCommand | None = None
        self._launched_for = 0
        """Number of agents that the launch knows of: they share budgets."""
        self._changing = anyio.Lock()
        """Held while the number of agents or nodes changes."""

    async def heartbeats(self) -> list[Heartbeat]:
        """Read the last heartbeats of the living agents."""
        return await read_heartbeats(self._runtime.out)

    async def exist(self) -> bool:
        """Tell whether Batch has tasks of agents that have not ended, whichever client started them."""
        await self._runtime.refresh()
        return any(task.is_alive for task in await self._tasks())

    async def _tasks(self) -> list[BatchTaskInfo]:
        """Return the tasks of the agents' job, as the manifest names it now."""
        return await self._runtime.connections.compute.tasks(self._runtime.manifest.agents_job)

    # ---- starting

    async def start(self, report: Reporter, least: int = 0) -> None:
        """Start the agents that are missing: one for each node. Idempotent; does not wait for them.

        `least`: how many an elastic pool is to have; it has as many as its least size at any time.
        """
        async with self._changing:
            for last in (False, False, True):
                try:
                    await self._start_missing(report, least)
                    return
                except PoolNotFound:
                    raise
                except PoolError:
                    if last:
                        raise  # else the agents' job ended at this moment: it is begun anew

    async def _start_missing(self, report: Reporter, least: int) -> None:
        runtime, compute = self._runtime, self._runtime.connections.compute
        info, tasks = await self._survey()
        sources, self._sources = self._sources, ()
        alive = sum(task.is_alive for task in tasks)
        limits, wanted = runtime.manifest.elastic, info.target
        most = wanted
        if limits is not None and is_ours(info.formula):
            wanted, most = max(limits.least, min(limits.most, least)), limits.most
        missing = wanted - alive
        if (spent := await spent_reason(runtime)) is not None:
            raise PoolError(f"no agents are started: {spent}")
        if missing <= 0:
            return
        launch = await self._prepare(sources, report, most)
        if tasks and not alive:
            # The client that started them may have died before it could say so.
            await compute.end_job_when_idle(runtime.manifest.agents_job)
            tasks = await self._begin_generation(runtime.manifest.agents_job)
            if tasks:
                return  # another client has started them
        job, container = runtime.manifest.agents_job, runtime.manifest.container
        report(f"starting {counted(missing, 'agent')}")
        await compute.create_job(job, runtime.pool_id)
        first = agent_job.next_number(tasks)
        more = agent_job.agent_tasks(launch, first, missing, info.task_slots, container)
        await compute.add_tasks(job, more)
        await compute.end_job_when_idle(job)
        logger.info("agents_started", extra={"pool": runtime.pool_id, "job": job, "count": len(more)})

    async def _prepare(
        self, sources: Sequence[BundleSource], report: Reporter, agents: int
    ) -> agent_launch.LaunchCommand:
        """Upload what agents start from, unless an earlier launch can be used again."""
        if self._launch is None or not self._launch.lasting or agents > self._launched_for:
            self._launched_for = agents
            runtime = self._runtime
            context = agent_launch.LaunchContext(
                runtime.manifest,
                runtime.ctl,
                runtime.out,
                made_here=self._made_here,
                sources=sources,
                agents=agents,
            )
            self._launch = await agent_launch.prepare(runtime.connections, runtime.settings, context, report)
        return self._launch

    async def _survey(self) -> tuple[PoolInfo, list[BatchTaskInfo]]:
        """Return the machines, and the tasks of the agents' job as the manifest names it now."""
        runtime, compute = self._runtime, self._runtime.connections.compute
        job = runtime.manifest.agents_job
        tasks: list[BatchTaskInfo] = []

        async def list_tasks() -> None:
            tasks.extend(await compute.tasks(job))

        async with task_group() as group:
            group.start_soon(runtime.refresh)
            group.start_soon(list_tasks)
            info = await compute.pool(runtime.pool_id)
        if runtime.manifest.agents_job != job:
            tasks = await self._tasks()
        return info, tasks

    async def _begin_generation(self, ended: str) -> list[BatchTaskInfo]:
        """Give the agents a new job, unless another client did so: then its tasks are returned."""

        def change(manifest: PoolManifest) -> PoolManifest:
            return agent_job.next_generation(manifest) if manifest.agents_job == ended else manifest

        await self._runtime.change(change)
        return await self._tasks()

    # ---- stopping

    async def stop(self, report: Reporter, *, drain: bool) -> None:
        """Stop the agents; the queued tasks stay for the next ones. Idempotent."""
        runtime, compute = self._runtime, self._runtime.connections.compute
        await runtime.refresh()
        if drain:
            await self._drain(report)
        alive = [task for task in await self._tasks() if task.is_alive]
        if alive:
            report(f"ending {counted(len(alive), 'agent')}")
        for task in alive:
            await compute.delete_task(runtime.manifest.agents_job, task.id)
        await compute.delete_job(runtime.manifest.agents_job)
        await self._begin_generation(runtime.manifest.agents_job)

    async def _drain(self, report: Reporter) -> None:
        """Tell the agents to drain, and return when they have drained or their time is over."""
        settings = self._runtime.settings.agent
        order = DrainOrder(self._runtime.manifest.agents_job, settings.drain_grace)
        await self._runtime.ctl.put(layout.DRAIN_BLOB, order.encode())
        with anyio.move_on_after(settings.drain_grace + settings.heartbeat_interval + _DRAIN_SLACK):
            await self._await_first_heartbeats()
            while beats := await self.heartbeats():
                running = sum(len(beat.running) for beat in beats)
                report(f"{counted(len(beats), 'agent')} still there, {counted(running, 'task')} running")
                await anyio.sleep(_POLL)

    async def _await_first_heartbeats(self) -> None:
        """Return when each agent that runs has written a heartbeat: a new one may run tasks before that.

        An agent whose node Batch does not name counts as one of those that wrote.
        """
        wrote: set[str | None] = set()
        with anyio.move_on_after(_DRAIN_SLACK):
            while True:
                wrote |= {beat.node for beat in await self.heartbeats()}
                tasks = await self._tasks()
                nodes = {task.node for task in tasks if task.is_alive and not task.waits_for_node}
                if not nodes or (wrote and nodes <= wrote | {None}):
                    return
                await anyio.sleep(_POLL)

    # ---- the size of the pool

    async def resize(self, nodes: int, spot: int, report: Reporter) -> None:
        """Ask Batch for so many nodes. A pool that shrinks loses its idlest nodes, after a drain.

        An elastic pool has a fixed size then.
        """
        compute, pool_id = self._runtime.connections.compute, self._runtime.pool_id
        async with self._changing:
            info = await take_formula(self._runtime, await compute.pool(pool_id))
            if not await shrink(self._runtime, info, (nodes, spot), report):
                await compute.resize_pool(pool_id, nodes, spot)
            self._launch = None  # agents of the other kind of pool leave at another time

    async def make_elastic(self, limits: ScalingLimits, report: Reporter) -> None:
        """Let the pool grow and shrink between these limits from now on."""
        async with self._changing:
            await set_limits(self._runtime, limits, report)
            self._launch = None


async def read_stderr(runtime: PoolRuntime, task: BatchTaskInfo) -> str:
    """Read the end of an agent's stderr. It is empty for a moment when Batch starts the task again."""
    compute, job = runtime.connections.compute, runtime.manifest.agents_job
    for _ in range(_STDERR_TRIES if task.retries else 1):
        text = await compute.task_output(job, task.id, "stderr.txt", _STDERR_TAIL)
        if text.strip():
            return text
        await anyio.sleep(random.uniform(0.5, 1.5) * _STDERR_PAUSE)  # not in step with its deaths
    return ""
