"""Why nothing happens in a pool, and what to do about it.

Each service is asked for what it knows. A service that does not answer is a cause, never an error.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from batchflow.diagnosis import agent_log
from batchflow.diagnosis.elastic import explain_elastic
from batchflow.diagnosis.facts import PoolFacts
from batchflow.diagnosis.remedies import service_of, unanswered_cause
from batchflow.errors import ServiceError
from batchflow.model import Cause, Explanation
from batchflow.pools.agents import read_stderr
from batchflow.pools.reports.heartbeats import read_heartbeats
from batchflow.pools.spending.budgets import spent_reason
from batchflow.ports.compute import START_TASK_FAILED
from batchflow.support.version import own_version

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchflow.pools.runtime import PoolRuntime
    from batchflow.ports.compute import BatchTaskInfo, NodeInfo, PoolInfo, ReportedFault
    from batchflow.protocol.documents import Heartbeat

_TAIL: Final = 2000
"""Bytes of a start task's stderr that an explanation shows."""
_MOST: Final = 3
"""Nodes in the same state, or agents, that are described one by one."""
_SKEW: Final = 30.0
"""Seconds that a clock may be wrong before it counts as a cause."""
_SOON: Final = 90 * 86400.0
"""Seconds before the end of an image's life in which it counts as a cause."""
_CLOCK_BLOB: Final = "clock"


async def explain_pool(runtime: PoolRuntime) -> Explanation:
    """Ask the three services, and explain what they answer."""
    causes: list[Cause] = []
    facts = PoolFacts()
    silent: set[str] = set()
    for ask in (_ask_budget, _ask_batch, _ask_agents, _ask_queue):
        try:
            causes += await ask(runtime, facts)
        except ServiceError as error:
            service = service_of(error)
            if service not in silent:
                causes.append(unanswered_cause(error))
            silent.add(service)
    if (load := load_cause(facts.known())) is not None:
        causes.append(load)
    return Explanation(_summary(runtime.pool_id, facts), tuple(causes), facts.known())


def load_cause(facts: Mapping[str, Any]) -> Cause | None:
    """Return the cause of tasks that wait for a slot, by the facts of a pool; None when a slot is free."""
    slots, running, queued = (facts.get(name) for name in ("slots", "running", "queued"))
    if not slots or not queued or running is None or running < slots:
        return None
    what = f"all {slots} slots are busy and {queued} messages wait, those of running tasks included"
    return Cause(what, "wait, or await pool.resize() to more nodes", "slow")


def _summary(pool_id: str, facts: PoolFacts) -> str:
    wanted = "?" if facts.wanted is None else facts.wanted
    parts = [f"pool {pool_id!r}: {len(facts.nodes or {})} of {wanted} nodes"]
    parts.append(f"{len(facts.agents or {})} agents alive")
    if facts.slots is not None:
        parts.append(f"{facts.running} of {facts.slots} slots busy")
    if facts.queued is not None:
        parts.append(f"{facts.queued} messages in the task queue")
    return ", ".join(parts)


# ---- Batch


async def _ask_budget(runtime: PoolRuntime, facts: PoolFacts) -> list[Cause]:
    reason = await spent_reason(runtime)
    return [] if reason is None else [Cause(reason, "make another pool: its budget is for its whole life")]


async def _ask_batch(runtime: PoolRuntime, facts: PoolFacts) -> list[Cause]:
    compute = runtime.connections.compute
    info = await compute.pool(runtime.pool_id)
    nodes = await compute.nodes(runtime.pool_id)
    facts.nodes = {node.id: node.state for node in nodes}
    facts.wanted = info.target
    elastic = [] if runtime.manifest.elastic is None else await explain_elastic(runtime, info, len(nodes))
    causes = elastic + _pool_causes(info, len(nodes), elastic=runtime.manifest.elastic is not None)
    return causes + await _image_causes(runtime, info) + await _causes_of_nodes(runtime, nodes)


async def _causes_of_nodes(runtime: PoolRuntime, nodes: list[NodeInfo]) -> list[Cause]:
    """Explain a few nodes in each state, and count the others."""
    causes: list[Cause] = []
    for state in dict.fromkeys(node.state for node in nodes):
        alike = [node for node in nodes if node.state == state]
        told = [cause for node in alike[:_MOST] for cause in await _node_causes(runtime, node)]
        if told and len(alike) > _MOST:
            told.append(replace(told[-1], what=f"{len(alike) - _MOST} more nodes are {state}"))
        causes += told
    return causes


def _pool_causes(info: PoolInfo, there: int, *, elastic: bool) -> list[Cause]:
    wanted = info.target
    causes = [
        Cause(f"Batch could not allocate nodes: {fault.code}: {fault.message}", _allocation_remedy(fault))
        for fault in info.resize_errors
    ]
    if info.state == "deleting":
        causes.append(Cause("the pool is being deleted", "make another one"))
    elif not wanted and elastic:
        pass  # it has nodes when it has work
    elif not wanted and info.autoscale:
        remedy = "change the pool's formula: it cannot see a Service Bus queue"
        causes.append(Cause("the pool's formula wants no nodes", remedy))
    elif not wanted:
        causes.append(Cause("the pool has no nodes", "await pool.resize(2)"))
    elif info.allocation == "resizing" and there < wanted:
        causes.append(Cause("Batch is allocating nodes", "wait: it takes minutes on Azure", "slow"))
    return causes


def _allocation_remedy(fault: ReportedFault) -> str:
    if fault.is_quota:
        return "raise the account's quota of cores, or ask for fewer nodes or another VM size"
    return "ask for another VM size or fewer nodes, then resize again"


async def _image_causes(runtime: PoolRuntime, info: PoolInfo) -> list[Cause]:
    image = info.image
    if image is None:
        return []
    name = (image.publisher.lower(), image.offer.lower(), image.sku.lower())
    text, now = ":".join(name), time.time()
    for each in await runtime.connections.compute.images():
        if (each.publisher.lower(), each.offer.lower(), each.sku.lower()) == name:
            left = None if each.end_of_life is None else each.end_of_life - now
            remedy = "make a new pool of another image: PoolSpec(image=...)"
            if left is not None and left <= 0:
                what = f"the image {text} is past its end of life: Batch makes no new nodes of it"
                return [Cause(what, remedy)]
            if left is not None and left < _SOON:
                return [Cause(f"the image {text} is retired in {left / 86400:.0f} days", remedy, "note")]
            return []
    return [Cause(f"Batch does not support the image {text} any more", "make a new pool of another image")]


async def _node_causes(runtime: PoolRuntime, node: NodeInfo) -> list[Cause]:
    if node.state == START_TASK_FAILED and node.start_task_error is not None:
        compute = runtime.connections.compute
        said = await compute.node_output(runtime.pool_id, node.id, "startup/stderr.txt", _TAIL)
        words = f"; its stderr ends: {said.strip()}" if said.strip() else "; its stderr is empty"
        what = f"the start task failed on node {node.id}: {node.start_task_error.message}{words}"
        remedy = "mend what it names or the start task, then pool.repurpose(files, reset=True, spec=...)"
        return [Cause(what, remedy)]
    match node.state:
        case "unusable":
            told = (
                "; ".join(f"{fault.code}: {fault.message}" for fault in node.errors) or "Batch says no more"
            )
            remedy = "reboot the node in the Azure portal, or resize the pool down and up again"
            return [Cause(f"node {node.id} is unusable: {told}", remedy)]
        case "preempted":
            remedy = "wait until Azure has spot capacity again, or resize to dedicated nodes"
            return [Cause(f"the spot node {node.id} was preempted; it comes back by itself", remedy, "slow")]
        case "offline" | "unknown":
            remedy = "wait; if it stays so, reboot it in the Azure portal, or resize the pool"
            return [Cause(f"node {node.id} is {node.state}: Batch has no contact to it", remedy, "slow")]
        case "starting" | "waitingforstarttask" | "rebooting" | "reimaging":
            what = {"waitingforstarttask": "runs its start task"}.get(node.state, f"is {node.state}")
            return [Cause(f"node {node.id} {what}", "wait: it takes minutes on Azure", "slow")]
    return []


# ---- agents


async def _ask_agents(runtime: PoolRuntime, facts: PoolFacts) -> list[Cause]:
    causes = await _own_clock_causes(runtime)
    beats = await read_heartbeats(runtime.out)
    facts.agents = {beat.host: beat.state for beat in beats}
    facts.slots = sum(beat.slots for beat in beats)
    facts.running = sum(len(beat.running) for beat in beats)
    facts.tasks = {task.uid: beat.host for beat in beats for task in beat.running}
    return causes + (_agent_causes(beats) if beats else await _absence_causes(runtime))


async def _own_clock_causes(runtime: PoolRuntime) -> list[Cause]:
    """Compare this machine's clock with the time that the storage service gives to a new blob."""
    before = time.time()
    await runtime.ctl.put(_CLOCK_BLOB, b"")
    after = time.time()
    told = [info.modified_at async for info in runtime.ctl.list(_CLOCK_BLOB) if info.name == _CLOCK_BLOB]
    skew = (before + after) / 2 - told[0] if told else 0.0
    if abs(skew) < _SKEW + (after - before):
        return []
    way = "ahead" if skew > 0 else "behind"
    what = f"the clock of this machine is {abs(skew):.0f} s {way} of the services'"
    return [Cause(what, "set it (ntp): with it, keys are refused and locks look as if they had run out")]


async def _absence_causes(runtime: PoolRuntime) -> list[Cause]:
    """Explain why no agent is alive, by the Batch tasks that start agents."""
    tasks = await runtime.connections.compute.tasks(runtime.manifest.agents_job)
    under_way = any(task.is_alive for task in tasks)
    remedy = "see what follows" if under_way else "await pool.start(); a session does it by itself"
    causes = [Cause("no agent is alive", remedy)]
    waiting = [task.id for task in tasks if task.waits_for_node]
    if waiting:
        what = f"{_listed(waiting)} {'waits' if len(waiting) == 1 else 'wait'} for a node"
        causes.append(Cause(what, "wait, or resize the pool", "slow"))
    for task in [task for task in tasks if task.id not in waiting][:_MOST]:
        causes += await _task_causes(runtime, task)
    return causes


def _listed(names: list[str]) -> str:
    """Join the first few names, and count the others."""
    more = [f"{len(names) - _MOST} more"] if len(names) > _MOST else []
    return " and ".join([", ".join(names[:_MOST]), *more])


async def _task_causes(runtime: PoolRuntime, task: BatchTaskInfo) -> list[Cause]:
    if task.failure is not None:
        what = f"Batch could not run {task.id}: {task.failure.code}: {task.failure.message}"
        return [Cause(what, "mend that (the setting agent.python?), then await pool.start()")]
    log = agent_log.read(await read_stderr(runtime, task))
    said = "".join(f"\n    {line}" for line in log.words) or " nothing"
    if times := max(log.crashes, task.retries):
        often = "once" if times == 1 else f"{times} times in a row"
        what = f"{task.id} on node {task.node} died {often} and is started again; it said:{said}"
        remedy = "mend what it says (packages of the image? agent.python?), then pool.stop() and pool.start()"
        return [Cause(what, remedy)]
    if not log.words:
        return []
    what = f"{task.id} is {task.state} on {task.node} and last said:{said}"
    return [Cause(what, "wait for its first heartbeat; if it fails again, read its stderr.txt", "slow")]


def _agent_causes(beats: list[Heartbeat]) -> list[Cause]:
    causes = [
        Cause(f"the agent on {beat.host}: {beat.trouble}", "it goes on by itself when that clears", "slow")
        for beat in beats
        if beat.trouble is not None
    ]
    for beat in beats:
        if beat.clock_skew is not None and abs(beat.clock_skew) > _SKEW:
            way = "ahead" if beat.clock_skew > 0 else "behind"
            what = f"the clock of node {beat.node} is {abs(beat.clock_skew):.0f} s {way} of the broker's"
            causes.append(Cause(what, "reboot the node: locks and times on it are wrong", "slow"))
    others = Counter(beat.versions.get("batchflow", "unknown") for beat in beats)
    own = own_version()
    for other, count in sorted(others.items()):
        if other != own:
            what = f"{count} of {len(beats)} agents are of batchflow {other}, this is {own}"
            causes.append(Cause(what, "await pool.stop(), then pool.start() brings this version", "slow"))
    return causes


# ---- the queue


async def _ask_queue(runtime: PoolRuntime, facts: PoolFacts) -> list[Cause]:
    figures = await runtime.connections.figures(runtime.manifest.task_queues)
    facts.queued = sum(each.active for each in figures)
    facts.dead = dead = sum(each.dead for each in figures)
    if not dead:
        return []
    what = f"{dead} messages are in the dead-letter queue"
    return [Cause(what, "wait: agents, and open sessions, turn them into results", "note")]
