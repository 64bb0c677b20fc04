"""Why the tasks of a session have no outcome yet."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from batchflow.diagnosis.pool import load_cause
from batchflow.diagnosis.remedies import problem_cause
from batchflow.errors import BlobNotFound, ProtocolError, ServiceError
from batchflow.model import Cause, Explanation
from batchflow.protocol.bundle import Bundle, bundle_blob

if TYPE_CHECKING:
    from batchflow.diagnosis.facts import SessionFacts
    from batchflow.ports.storage import Container


async def explain_session(pool: Explanation, session: SessionFacts, ctl: Container) -> Explanation:
    """Put what keeps the session's tasks before what keeps its pool.

    `session`: its facts as they are after the pool was explained, so that a task that runs is not counted
    as being sent.
    """
    causes = list(pool.causes)
    if not session.waiting:  # the tasks of other sessions wait: that keeps nothing here
        load = load_cause(pool.facts)
        causes = [cause for cause in causes if cause != load]
    try:
        causes = await _file_causes(ctl, session) + causes
    except (ServiceError, ProtocolError) as error:
        causes.insert(0, Cause(f"the bundle cannot be read: {error}", "await session.update_files(files)"))
    for told in session.unfitting:
        causes.insert(0, Cause(told, "wait, or add nodes: others do not wait for them", "slow"))
    for told in session.unmet:
        remedy = "add a node that has it (PoolSpec(vm_size=, slots=, tags=)), or cancel them and require less"
        causes.insert(0, Cause(f"{told}: no agent that lives can run them", remedy))
    if session.environment is not None:
        remedy = "wait: it is built once, and later sessions find it in the pool"
        causes.insert(0, Cause(f"its tasks wait for their packages: {session.environment}", remedy, "slow"))
    if session.environment_failure is not None:
        remedy = (
            "await session.update_files(files, requirements=...), then submit anew; or open another session"
        )
        causes.insert(0, Cause(session.environment_failure, remedy))
    if session.problem is not None:
        causes.insert(0, problem_cause(session.problem))
    running = _own_running(session, pool.facts.get("tasks", {}))
    facts = {**pool.facts, "counts": session.counts, "running_on": running}
    summary = f"session {session.job}/{session.name}: {_state(session, running)}; {pool.summary}"
    return Explanation(summary, tuple(causes), facts)


def _own_running(session: SessionFacts, tasks: dict[str, str]) -> dict[str, list[str]]:
    """List the labels of the session's running tasks by their host. `tasks`: hosts by uid."""
    running: dict[str, list[str]] = {}
    for task in session.waiting:
        if (host := tasks.get(task.uid)) is not None:
            running.setdefault(host, []).append(task.task_id)
    return running


def _state(session: SessionFacts, running: dict[str, list[str]]) -> str:
    counts = session.counts
    number = sum(map(len, running.values()))
    where = ", ".join(f"{len(labels)} on {host}" for host, labels in sorted(running.items()))
    told = f"{counts.sending} being sent, {counts.queued + counts.running - number} queued, {number} running"
    if counts.waiting:
        told = f"{counts.waiting} waiting for others, {told}"
    return f"{told}{f' ({where})' if where else ''}, {counts.done} done"


async def _file_causes(ctl: Container, session: SessionFacts) -> list[Cause]:
    """Find commands of waiting tasks for which the session's bundle has no file."""
    wanted = Counter(task.command for task in session.waiting)
    hashed = session.bundle
    if not wanted or not hashed:
        return []
    try:
        blob = await ctl.get(bundle_blob(hashed))
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
