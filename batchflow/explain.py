"""Why nothing happens, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from batchflow.errors import QueueNotFound, ServiceError
from batchflow.model import Cause, Explanation

if TYPE_CHECKING:
    from batchflow.compute import NodeInfo, PoolInfo
    from batchflow.control import Heartbeat
    from batchflow.pool import Pool

_TAIL: Final = 2000
"""Bytes of an agent's stderr that an explanation looks at."""


async def explain_pool(pool: Pool) -> Explanation:
    """Ask the three services. What cannot be asked is a cause by itself, never an error."""
    services = pool.client._services
    causes: list[Cause] = []
    facts: dict[str, Any] = {}
    try:
        info = await services.compute.pool(pool.id)
        nodes = await services.compute.nodes(pool.id)
        causes += _pool_causes(info) + _node_causes(nodes)
        facts["nodes"] = {node.id: node.state for node in nodes}
        facts["wanted"] = info.wanted + info.spot_wanted
    except ServiceError as error:
        causes.append(
            Cause(f"Batch cannot be asked: {error}", "check the [batch] settings and the pool's id")
        )
    try:
        beats = await pool.heartbeats()
        causes += _agent_causes(beats) if beats else await _absence_causes(pool)
        facts["agents"] = {beat.host: beat.state for beat in beats}
        facts["slots"] = sum(beat.slots for beat in beats)
        facts["running"] = sum(len(beat.running) for beat in beats)
    except ServiceError as error:
        causes.append(
            Cause(f"the agents' heartbeats cannot be read: {error}", "check the [storage] settings")
        )
    try:
        figures = [await services.admin.figures(queue.entity) for queue in pool._manifest.task_queues]
        facts["queued"] = sum(each.active for each in figures)
        facts["dead"] = sum(each.dead for each in figures)
    except QueueNotFound as error:
        causes.append(Cause(str(error), "delete the pool and make it anew: its queue is gone"))
    except ServiceError as error:
        causes.append(Cause(f"the queue cannot be asked: {error}", "it needs the right Manage", "note"))
    return Explanation(_summary(pool, facts), tuple(causes), facts)


def _summary(pool: Pool, facts: dict[str, Any]) -> str:
    agents = facts.get("agents", {})
    parts = [f"pool {pool.id!r}: {len(facts.get('nodes', {}))} of {facts.get('wanted', '?')} nodes"]
    parts.append(f"{len(agents)} agents alive")
    if "slots" in facts:
        parts.append(f"{facts['running']} of {facts['slots']} slots busy")
    if "queued" in facts:
        parts.append(f"{facts['queued']} messages in the task queue")
    return ", ".join(parts)


def _pool_causes(info: PoolInfo) -> list[Cause]:
    causes = [
        Cause(
            f"Batch could not allocate nodes: {fault.code}: {fault.message}", _allocation_remedy(fault.code)
        )
        for fault in info.resize_errors
    ]
    if info.state == "deleting":
        causes.append(Cause("the pool is being deleted", "make another one"))
    if not info.wanted and not info.spot_wanted:
        causes.append(Cause("the pool has no nodes", "await pool.resize(2)"))
    elif info.allocation == "resizing" and info.nodes < info.wanted:
        causes.append(Cause("Batch is allocating nodes", "wait: it takes minutes on Azure", "slow"))
    return causes


def _allocation_remedy(code: str) -> str:
    if "quota" in code.lower():
        return "raise the account's quota, or ask for fewer nodes or another VM size"
    return "ask for another VM size or fewer nodes, then resize again"


def _node_causes(nodes: list[NodeInfo]) -> list[Cause]:
    causes = []
    for node in nodes:
        if node.start_task_error is not None:
            what = f"the start task failed on {node.id}: {node.start_task_error.message}"
            causes.append(Cause(what, "read its stderr, mend the start command, then reboot the node"))
        elif node.state in ("unusable", "offline", "preempted"):
            causes.append(Cause(f"node {node.id} is {node.state}", "reboot it, or resize the pool"))
    return causes


async def _absence_causes(pool: Pool) -> list[Cause]:
    """Why no agent is alive: what Batch tells of the tasks that should be agents."""
    compute, job = pool.client._services.compute, pool._manifest.agents_job
    causes = [Cause("no agent is alive", "await pool.start(); a session does it by itself")]
    for task in await compute.tasks(job):
        if task.failure is not None:
            what = f"Batch could not run {task.id}: {task.failure.code}: {task.failure.message}"
            causes.append(Cause(what, "mend that, then await pool.stop() and pool.start()"))
        elif task.state == "active":
            causes.append(Cause(f"{task.id} waits for a node", "wait, or resize the pool", "slow"))
        elif said := (await compute.task_output(job, task.id, "stderr.txt", _TAIL)).strip():
            what = f"{task.id} is {task.state} on {task.node} and last said: {said.splitlines()[-1]}"
            causes.append(Cause(what, "wait for its first heartbeat; if it fails again, read its stderr.txt"))
    return causes


def _agent_causes(beats: list[Heartbeat]) -> list[Cause]:
    return [
        Cause(f"the agent on {beat.host}: {beat.trouble}", "it goes on by itself when that clears", "slow")
        for beat in beats
        if beat.trouble is not None
    ]
