"""Why nothing happens, and what to do about it.

Each service is asked for what it knows. What cannot be asked is a cause by itself, never an error.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio

from batchflow.diagnosis import agent_log
from batchflow.errors import (
    AllocationFailed,
    Backpressure,
    BlobNotFound,
    MailboxInUse,
    NoAgents,
    NodeUnusable,
    PoolError,
    PoolNotFound,
    ProtocolError,
    QueueNotFound,
    QuotaExceeded,
    ServiceError,
    StartTaskFailed,
    StorageError,
)
from batchflow.model import Cause, Explanation
from batchflow.pools.heartbeats import read_heartbeats
from batchflow.protocol.bundle import Bundle, bundle_blob
from batchflow.support.progress_report import counted
from batchflow.support.version import own_version

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchflow.diagnosis.agent_log import AgentLog
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.ports.compute import BatchTaskInfo, NodeInfo, PoolInfo
    from batchflow.protocol.documents import Heartbeat
    from batchflow.session import Session

_TAIL: Final = 2000
"""Bytes of a start task's stderr that an explanation shows."""
_LOG_TAIL: Final = 32_000
"""Bytes of an agent's stderr that an explanation looks at."""
_LOG_TRIES: Final = 20
_LOG_PAUSE: Final = 0.1
_MOST: Final = 3
"""Nodes in the same state, or agents, that are told of one by one."""
_IN_VAIN: Final = 5
"""Deaths in a row, before any sign of life, after which no agent is expected any more."""
_SKEW: Final = 30.0
"""Seconds that a clock may be off before it is told."""
_SOON: Final = 90 * 86400.0
"""Seconds before the end of an image's life from when on it is told."""
_CLOCK_BLOB: Final = "clock"

_SERVICES: Final[tuple[tuple[type[ServiceError], str], ...]] = (
    (PoolError, "Batch"),
    (StorageError, "Blob Storage"),
    (ServiceError, "Service Bus"),
)
_GROUPS: Final = {"Batch": "[batch]", "Blob Storage": "[storage]", "Service Bus": "[servicebus]"}
_REMEDIES: Final[tuple[tuple[type[ServiceError], str], ...]] = (
    (Backpressure, "submit more slowly, let larger tasks ride, or take the Premium tier of Service Bus"),
    (MailboxInUse, "take another session name, or close the holder and wait for a lock duration"),
    (QueueNotFound, "delete the pool and make it anew: its queue is gone"),
    (QuotaExceeded, "raise the account's quota, or delete pools and jobs that are not needed"),
    (NoAgents, "see what follows"),
)


async def explain_pool(runtime: PoolRuntime) -> Explanation:
    """Ask the three services."""
    causes: list[Cause] = []
    facts: dict[str, Any] = {}
    silent: set[str] = set()
    for ask in (_ask_batch, _ask_agents, _ask_queue):
        try:
            causes += await ask(runtime, facts)
        except ServiceError as error:
            service = next(name for kind, name in _SERVICES if isinstance(error, kind))
            if service not in silent:
                causes.append(_unanswered(error, service))
            silent.add(service)
    if facts.get("queued") and facts.get("slots", 0) and facts["running"] >= facts["slots"]:
        what = f"all {facts['slots']} slots are busy and {facts['queued']} messages wait"
        causes.append(Cause(what, "wait, or await pool.resize() to more nodes", "slow"))
    return Explanation(_summary(runtime, facts), tuple(causes), facts)


async def explain_session(session: Session) -> Explanation:
    """What keeps a session's tasks, before what is known of its pool."""
    explanation = await explain_pool(session.pool.runtime)
    causes = list(explanation.causes)
    try:
        causes = await _file_causes(session) + causes
    except (ServiceError, ProtocolError) as error:
        causes.insert(0, Cause(f"the bundle cannot be read: {error}", "await session.update_files(files)"))
    if session._trouble is not None:
        causes.insert(0, problem_cause(session._trouble))
    running = _own_running(session, explanation.facts.get("tasks", {}))
    facts = {**explanation.facts, "counts": session.counts, "running_on": running}
    summary = f"session {session.job_name}/{session.name}: {_state(session, running)}; {explanation.summary}"
    return Explanation(summary, tuple(causes), facts)


def _own_running(session: Session, tasks: dict[str, str]) -> dict[str, list[str]]:
    """The labels of the session's tasks that run, by the host that runs them. `tasks`: hosts by uid."""
    running: dict[str, list[str]] = {}
    for entry in session._tracker:
        if (host := tasks.get(entry.uid)) is not None:
            running.setdefault(host, []).append(entry.task_id)
    return running


def _state(session: Session, running: dict[str, list[str]]) -> str:
    counts = session.counts
    number = sum(map(len, running.values()))
    where = ", ".join(f"{len(labels)} on {host}" for host, labels in sorted(running.items()))
    told = f"{counts.sending} being sent, {counts.queued - number} queued, {number} running"
    return f"{told}{f' ({where})' if where else ''}, {counts.done} done"


def problem_cause(error: ServiceError) -> Cause:
    """A failure as a cause, with the remedy that goes with its kind, or with that of what led to it."""
    for kind, remedy in _REMEDIES:
        if isinstance(error, kind) or isinstance(error.__cause__, kind):
            return Cause(str(error), remedy, "slow" if error.retryable else "blocking")
    if error.setting is not None:
        return Cause(str(error), f"check the setting {error.setting}: its key may lack the right")
    return Cause(str(error), "it is tried again" if error.retryable else "see what follows")


def _unanswered(error: ServiceError, service: str) -> Cause:
    what = f"{service} cannot be asked: {error}"
    for kind, remedy in _REMEDIES:
        if isinstance(error, kind):
            return Cause(what, remedy, "slow" if error.retryable else "blocking")
    setting = error.setting or _GROUPS[service]
    remedy = f"check the setting {setting}: what it names may be wrong, or its key may lack the right"
    return Cause(what, remedy, "note" if service == "Service Bus" else "blocking")


async def cannot_become_ready(runtime: PoolRuntime, nodes: int | None) -> Callable[[str], PoolError] | None:
    """What makes an error, of a text, of that so many ready nodes can never come; None while they can."""
    compute = runtime.connections.compute
    info = await compute.pool(runtime.pool_id)
    if info.state == "deleting":
        return PoolNotFound
    there = await compute.nodes(runtime.pool_id)
    wanted = info.wanted + info.spot_wanted if nodes is None else nodes
    if info.allocation == "steady" and info.resize_errors and len(there) < wanted:
        quota = any("quota" in fault.code.lower() for fault in info.resize_errors)
        return QuotaExceeded if quota else AllocationFailed
    failed = [node for node in there if node.state in ("starttaskfailed", "unusable")]
    if failed and max(len(there), wanted) - len(failed) < wanted:
        return StartTaskFailed if failed[0].state == "starttaskfailed" else NodeUnusable
    if info.allocation == "steady" and not info.autoscale and info.wanted + info.spot_wanted < wanted:
        return partial(_too_small, info.wanted + info.spot_wanted, wanted)
    tasks = await compute.tasks(runtime.manifest.agents_job)
    if tasks and all(task.failure is not None and task.state == "completed" for task in tasks):
        return PoolError
    return PoolError if await _start_in_vain(runtime, tasks) else None


def _too_small(shall: int, wanted: int, text: str) -> PoolError:
    what = f"the pool shall have {counted(shall, 'node')}, and {wanted} ready ones are waited for"
    return PoolError(f"{text}\n- {what}\n  what to do: await pool.resize({wanted})")


async def _start_in_vain(runtime: PoolRuntime, tasks: list[BatchTaskInfo]) -> bool:
    """Whether no agent has ever lived and each dies again and again; of those that run one is asked."""
    alive = [task for task in tasks if task.state != "completed"]
    if not alive or await read_heartbeats(runtime.out):
        return False
    if all(task.retries >= _IN_VAIN for task in alive):
        return True
    running = [task for task in alive if task.state == "running"]
    return bool(running) and (await _agent_log(runtime, running[0])).deaths >= _IN_VAIN


async def _agent_log(runtime: PoolRuntime, task: BatchTaskInfo) -> AgentLog:
    """A task that Batch starts again has an empty one for a moment."""
    compute = runtime.connections.compute
    for _ in range(_LOG_TRIES if task.retries else 1):
        text = await compute.task_output(runtime.manifest.agents_job, task.id, "stderr.txt", _LOG_TAIL)
        if text.strip():
            return agent_log.read(text)
        await anyio.sleep(random.uniform(0.5, 1.5) * _LOG_PAUSE)  # not in step with its deaths
    return agent_log.read("")


def _summary(runtime: PoolRuntime, facts: dict[str, Any]) -> str:
    parts = [f"pool {runtime.pool_id!r}: {len(facts.get('nodes', {}))} of {facts.get('wanted', '?')} nodes"]
    parts.append(f"{len(facts.get('agents', {}))} agents alive")
    if "slots" in facts:
        parts.append(f"{facts['running']} of {facts['slots']} slots busy")
    if "queued" in facts:
        parts.append(f"{facts['queued']} messages in the task queue")
    return ", ".join(parts)


# ---- Batch


async def _ask_batch(runtime: PoolRuntime, facts: dict[str, Any]) -> list[Cause]:
    compute = runtime.connections.compute
    info = await compute.pool(runtime.pool_id)
    nodes = await compute.nodes(runtime.pool_id)
    facts["nodes"] = {node.id: node.state for node in nodes}
    facts["wanted"] = info.wanted + info.spot_wanted
    causes = _pool_causes(info, len(nodes)) + await _image_causes(runtime, info)
    return causes + await _causes_of_nodes(runtime, nodes)


async def _causes_of_nodes(runtime: PoolRuntime, nodes: list[NodeInfo]) -> list[Cause]:
    """Of each state a few nodes are told of, and how many there are beside them."""
    causes: list[Cause] = []
    for state in dict.fromkeys(node.state for node in nodes):
        alike = [node for node in nodes if node.state == state]
        told = [cause for node in alike[:_MOST] for cause in await _node_causes(runtime, node)]
        if told and len(alike) > _MOST:
            told.append(replace(told[-1], what=f"{len(alike) - _MOST} more nodes are {state}"))
        causes += told
    return causes


def _pool_causes(info: PoolInfo, there: int) -> list[Cause]:
    wanted = info.wanted + info.spot_wanted
    causes = [
        Cause(
            f"Batch could not allocate nodes: {fault.code}: {fault.message}", _allocation_remedy(fault.code)
        )
        for fault in info.resize_errors
    ]
    if info.state == "deleting":
        causes.append(Cause("the pool is being deleted", "make another one"))
    elif not wanted and info.autoscale:
        remedy = "change the pool's formula: it cannot see a Service Bus queue"
        causes.append(Cause("the pool's formula wants no nodes", remedy))
    elif not wanted:
        causes.append(Cause("the pool has no nodes", "await pool.resize(2)"))
    elif info.allocation == "resizing" and there < wanted:
        causes.append(Cause("Batch is allocating nodes", "wait: it takes minutes on Azure", "slow"))
    return causes


def _allocation_remedy(code: str) -> str:
    if "quota" in code.lower():
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
    if node.state == "starttaskfailed" and node.start_task_error is not None:
        compute = runtime.connections.compute
        said = await compute.node_output(runtime.pool_id, node.id, "startup/stderr.txt", _TAIL)
        words = f"; its stderr ends: {said.strip()}" if said.strip() else "; its stderr is empty"
        what = f"the start task failed on node {node.id}: {node.start_task_error.message}{words}"
        return [Cause(what, "mend the start task: pool.repurpose(files, reset=True, spec=...)")]
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


async def _ask_agents(runtime: PoolRuntime, facts: dict[str, Any]) -> list[Cause]:
    causes = await _own_clock_causes(runtime)
    beats = await read_heartbeats(runtime.out)
    facts["agents"] = {beat.host: beat.state for beat in beats}
    facts["slots"] = sum(beat.slots for beat in beats)
    facts["running"] = sum(len(beat.running) for beat in beats)
    facts["tasks"] = {task.uid: beat.host for beat in beats for task in beat.running}
    return causes + (_agent_causes(beats) if beats else await _absence_causes(runtime))


async def _own_clock_causes(runtime: PoolRuntime) -> list[Cause]:
    """By the time that the storage service gives to a blob written now."""
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
    """Why no agent is alive: what Batch tells of the tasks that should be agents."""
    tasks = await runtime.connections.compute.tasks(runtime.manifest.agents_job)
    under_way = any(task.state != "completed" for task in tasks)
    remedy = "see what follows" if under_way else "await pool.start(); a session does it by itself"
    causes = [Cause("no agent is alive", remedy)]
    waiting = [task.id for task in tasks if task.state == "active" and not task.retries]
    if waiting:
        what = f"{_listed(waiting)} {'waits' if len(waiting) == 1 else 'wait'} for a node"
        causes.append(Cause(what, "wait, or resize the pool", "slow"))
    for task in [task for task in tasks if task.id not in waiting][:_MOST]:
        causes += await _task_causes(runtime, task)
    return causes


def _listed(names: list[str]) -> str:
    """The first few of them, and how many there are beside."""
    more = [f"{len(names) - _MOST} more"] if len(names) > _MOST else []
    return " and ".join([", ".join(names[:_MOST]), *more])


async def _task_causes(runtime: PoolRuntime, task: BatchTaskInfo) -> list[Cause]:
    if task.failure is not None:
        what = f"Batch could not run {task.id}: {task.failure.code}: {task.failure.message}"
        return [Cause(what, "mend that (the setting agent.python?), then await pool.start()")]
    log = await _agent_log(runtime, task)
    said = "".join(f"\n    {line}" for line in log.words) or " nothing"
    if times := max(log.deaths, task.retries):
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


# ---- the queue, and the tasks' files


async def _ask_queue(runtime: PoolRuntime, facts: dict[str, Any]) -> list[Cause]:
    services, queues = runtime.connections, runtime.manifest.task_queues
    figures = [await services.admin_of(queue).figures(queue.entity) for queue in queues]
    facts["queued"] = sum(each.active for each in figures)
    facts["dead"] = dead = sum(each.dead for each in figures)
    if not dead:
        return []
    what = f"{dead} messages are in the dead-letter queue"
    return [Cause(what, "wait: agents, and open sessions, turn them into results", "note")]


async def _file_causes(session: Session) -> list[Cause]:
    """Commands of waiting tasks that the session's bundle has no file for."""
    wanted = Counter(entry.command for entry in session._tracker)
    hashed = session._submitter.bundle
    if not wanted or not hashed:
        return []
    try:
        blob = await session.pool.runtime.ctl.get(bundle_blob(hashed))
    except BlobNotFound:
        remedy = "await session.update_files(files), then submit anew"
        return [Cause(f"the bundle {hashed[:12]} is gone", remedy)]
    bundle = Bundle.read(blob.data, hashed)
    names = ", ".join(file.name for file in bundle.files[:10]) or "no files at all"
    remedy = f"the bundle has {names}; await session.update_files(files), then submit anew"
    return [
        Cause(f"{count} tasks want {command!r}, which is no file of the bundle", remedy)
        for command, count in sorted(wanted.items())
        if command not in bundle
    ]
