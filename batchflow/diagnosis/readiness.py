"""How many agents of a pool are ready, and whether enough of them can still become ready."""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio

from batchflow.diagnosis import agent_log
from batchflow.diagnosis.pool import explain_pool
from batchflow.errors import (
    AllocationFailed,
    NodeUnusable,
    PoolError,
    PoolNotFound,
    QuotaExceeded,
    StartTaskFailed,
)
from batchflow.model import AGENT_GONE
from batchflow.pools.agents import read_stderr
from batchflow.pools.reports.heartbeats import read_heartbeats
from batchflow.pools.scaling.formula import is_ours
from batchflow.ports.compute import START_TASK_FAILED
from batchflow.support.frozen import frozen
from batchflow.support.progress_report import counted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batchflow.pools.runtime import PoolRuntime
    from batchflow.ports.compute import BatchTaskInfo, PoolInfo
    from batchflow.support.progress_report import Reporter

_POLL: float = 0.25
"""Seconds between two looks at what is awaited."""
_LOOKS: Final = 20
"""Looks after which a wait for agents starts again those that are missing."""
_IN_VAIN: Final = 5
"""Deaths in a row, before any sign of life, after which no agent is expected any more."""


@frozen
class Readiness:
    """How far a pool is on its way to so many ready agents."""

    ready: int
    wanted: int
    text: str

    @property
    def reached(self) -> bool:
        return self.ready >= self.wanted


async def measure_readiness(runtime: PoolRuntime, nodes: int | None) -> Readiness:
    """Count the agents that are ready, of `nodes`, or of all that the pool wants."""
    compute = runtime.connections.compute
    info = await compute.pool(runtime.pool_id)
    wanted = _wanted(runtime, info) if nodes is None else nodes
    gone = {node.id for node in await compute.nodes(runtime.pool_id) if node.state in AGENT_GONE}
    beats = await read_heartbeats(runtime.out)
    ready = sum(beat.state == "ready" and beat.node not in gone for beat in beats)
    there = f"{info.size} of {info.target} nodes"
    return Readiness(ready, wanted, f"{there}, {ready} agents ready of {wanted}")


def _wanted(runtime: PoolRuntime, info: PoolInfo) -> int:
    """Return the nodes that are to be there without work."""
    limits = runtime.manifest.elastic
    if limits is not None and is_ours(info.formula):
        return limits.least
    return info.target


async def cannot_become_ready(runtime: PoolRuntime, nodes: int | None) -> Callable[[str], PoolError] | None:
    """Choose the error for a pool that can never have so many ready nodes; None while it still can."""
    compute = runtime.connections.compute
    info = await compute.pool(runtime.pool_id)
    if info.state == "deleting":
        return PoolNotFound
    there = await compute.nodes(runtime.pool_id)
    wanted = _wanted(runtime, info) if nodes is None else nodes
    if info.allocation == "steady" and info.resize_errors and len(there) < wanted:
        quota = any(fault.is_quota for fault in info.resize_errors)
        return QuotaExceeded if quota else AllocationFailed
    failed = [node for node in there if node.has_failed]
    if failed and max(len(there), wanted) - len(failed) < wanted:
        return StartTaskFailed if failed[0].state == START_TASK_FAILED else NodeUnusable
    if info.allocation == "steady" and not info.autoscale and info.target < wanted:
        return partial(_too_small, info.target, wanted)
    tasks = await compute.tasks(runtime.manifest.agents_job)
    if tasks and all(task.failure is not None and task.state == "completed" for task in tasks):
        return PoolError
    return PoolError if await _start_in_vain(runtime, tasks) else None


async def until_ready(
    runtime: PoolRuntime,
    nodes: int | None,
    timeout: float | None,
    report: Reporter,
    start: Callable[[], Awaitable[None]],
) -> None:
    """Return when so many nodes have a ready agent. `start`: starts the agents that are missing.

    Raises a `PoolError` as soon as that can no longer be, TimeoutError after `timeout` seconds, both with the
    pool's explanation.
    """
    await start()
    try:
        with anyio.fail_after(timeout):
            for look in itertools.count(1):
                readiness = await measure_readiness(runtime, nodes)
                report(readiness.text)
                if readiness.reached:
                    return
                if (kind := await cannot_become_ready(runtime, nodes)) is not None:
                    raise kind(f"pool {runtime.pool_id!r} cannot become ready. {await explain_pool(runtime)}")
                await anyio.sleep(_POLL)
                if look % _LOOKS == 0:
                    await start()  # some may have gone since: idle, drained
    except TimeoutError:
        raise TimeoutError(f"pool {runtime.pool_id!r} is not ready. {await explain_pool(runtime)}") from None


def _too_small(asked: int, wanted: int, text: str) -> PoolError:
    what = f"the pool is to have {counted(asked, 'node')}, and {wanted} ready ones are waited for"
    return PoolError(f"{text}\n- {what}\n  what to do: await pool.resize({wanted})")


async def _start_in_vain(runtime: PoolRuntime, tasks: list[BatchTaskInfo]) -> bool:
    """Tell whether no agent ever lived and each dies again and again, by the log of one that runs."""
    alive = [task for task in tasks if task.is_alive]
    if not alive or await read_heartbeats(runtime.out):
        return False
    if all(task.retries >= _IN_VAIN for task in alive):
        return True
    running = [task for task in alive if task.state == "running"]
    return bool(running) and agent_log.read(await read_stderr(runtime, running[0])).crashes >= _IN_VAIN
