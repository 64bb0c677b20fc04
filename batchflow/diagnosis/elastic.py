"""How far an elastic pool is on its way to the nodes that it asked for, and what keeps it from growing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from batchflow.model import Cause
from batchflow.pools.elastic.acting import foreign_size
from batchflow.pools.elastic.boots import read_history
from batchflow.pools.elastic.quota import quota_note
from batchflow.pools.scaling.formula import is_ours

if TYPE_CHECKING:
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.ports.compute import PoolInfo

_MINUTE = 60.0


async def explain_elastic(runtime: PoolRuntime, info: PoolInfo, there: int) -> list[Cause]:
    """Explain the size of an elastic pool with `there` nodes. Raises `ServiceError`."""
    limits = runtime.manifest.elastic
    if limits is None:
        return []
    if not is_ours(info.formula):
        remedy = "await pool.resize(max_nodes=...) makes the pool elastic again, where it has no formula"
        return [Cause(foreign_size(info), remedy, "note")]
    causes = []
    if info.formula_error is not None:
        what = f"the pool's formula could not be evaluated: {info.formula_error.message}"
        causes.append(Cause(what, "wait: the size stays, and the next evaluation follows", "slow"))
    history = await read_history(runtime.connections.manifests.index, info)
    if history.refused is not None and history.refused < limits.most:
        causes.append(Cause(quota_note(limits, history.refused), "the pool grows as far as it goes", "note"))
    tasks = await runtime.connections.compute.tasks(runtime.manifest.agents_job)
    now = time.time()
    ages = [now - (task.created_at or now) for task in tasks if task.waits_for_node]
    if ages:
        boot = "no boot of a node of this kind was seen here yet"
        if history.seconds is not None:
            boot = f"a node of this kind takes about {_spell(history.seconds.mean)} here"
        what = f"{there} nodes, {len(ages)} asked for {_spell(max(ages))} ago, {boot}"
        causes.append(Cause(what, "wait", "slow"))
    elif not there and not limits.least:
        causes.append(Cause("0 nodes: no task waits", "submit a task: the pool grows with it", "note"))
    return causes


def _spell(seconds: float) -> str:
    """Return a duration in words: in minutes from one and a half of them on."""
    if seconds < 1.5 * _MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / _MINUTE:.0f} minutes"
