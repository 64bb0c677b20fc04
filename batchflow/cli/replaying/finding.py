"""Finds the task that is to be run again: among those that failed, the dead letters, and a run's inputs."""

from __future__ import annotations

import time
from dataclasses import field
from typing import TYPE_CHECKING, Final

import anyio

from batchflow.cli.exits import CommandError, Exit
from batchflow.cli.sources.workflows import with_values
from batchflow.errors import BlobNotFound, BrokerError, ProtocolError
from batchflow.protocol.dead_letters import read_tasks, reason_of, seen
from batchflow.protocol.failed_tasks import FailedTask, attempt_of, failed_prefix, uid_of
from batchflow.protocol.wire import TaskItem
from batchflow.support.frozen import frozen
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from batchflow.cli.record import FileSpec, RunRecord
    from batchflow.pool import Pool
    from batchflow.ports.storage import BlobInfo, Container

MOST_READ: Final = 1000
"""Failed tasks that are looked through for a label, the latest first."""
_READS: Final = 16
"""Failed tasks that are read at the same time."""


@frozen
class FoundTask:
    """A task to be run here."""

    item: TaskItem
    error: str | None = None
    """How it failed; None where that is not known."""
    files: list[FileSpec] | None = None
    """Files of this machine, of a run whose task the pool does not have; None: the bundle's."""
    variables: dict[str, str] = field(default_factory=dict, repr=False)
    """Environment variables, beside those that the task names."""
    notes: tuple[str, ...] = ()
    """What differs from the task as it ran."""


async def failed_tasks(pool: Pool, job: str = "", client: str = "") -> list[FailedTask]:
    """Return the tasks that failed and are kept, the latest first. Raises `StorageError`."""
    kept = await _listed(pool, job, client)
    return [each for each in await _read(kept) if client in ("", each.task.client)]


async def find_task(pool: Pool, wanted: str, job: str = "", client: str = "") -> FoundTask | None:
    """Return the latest task of that uid or label; None when the pool has none. Raises `StorageError`."""
    kept = await _listed(pool, job, client)
    named = [each for each in kept if uid_of(each[0].name) == wanted]
    named.sort(key=lambda each: attempt_of(each[0].name), reverse=True)
    for failed in await _read(named):
        return FoundTask(failed.task, failed.error)
    for failed in [*await _read(kept), *await _dead_letters(pool)]:
        task = failed.task
        if wanted in (task.task_id, task.uid) and job in ("", task.job) and client in ("", task.client):
            return FoundTask(task, failed.error)
    return None


async def _listed(pool: Pool, job: str, client: str) -> list[tuple[BlobInfo, Container]]:
    """Return where the tasks that failed are kept, the latest first."""
    found = []
    for container in (pool.runtime.out, pool.runtime.ctl):
        listed = container.list(failed_prefix(job, client if job else ""))
        found += [(info, container) async for info in listed]
    return sorted(found, key=lambda each: each[0].modified_at, reverse=True)


async def _read(kept: list[tuple[BlobInfo, Container]]) -> list[FailedTask]:
    """Read the first of these tasks, in their order."""
    found: dict[int, FailedTask] = {}
    limiter = anyio.CapacityLimiter(_READS)

    async def read(number: int, name: str, container: Container) -> None:
        async with limiter:
            try:
                found[number] = FailedTask.decode((await container.get(name)).data)
            except (BlobNotFound, ProtocolError):
                return  # removed meanwhile, or written by code on a node

    async with task_group() as group:
        for number, (info, container) in enumerate(kept[:MOST_READ]):
            group.start_soon(read, number, info.name, container)
    return [found[number] for number in sorted(found)]


async def _dead_letters(pool: Pool) -> list[FailedTask]:
    """Return the tasks of the dead letters, which stay there; nothing without the right to read them."""
    found = []
    for queue in pool.runtime.manifest.task_queues:
        try:
            receiver = await pool.runtime.connections.broker.receiver(queue, dead_letters=True)
            async with receiver:
                held = await seen(receiver)
        except BrokerError:
            continue
        for letter in held:
            try:
                tasks = read_tasks(letter.body)
            except ProtocolError:
                continue
            for task in tasks:
                reason = reason_of(letter, task, time.time())
                found.append(FailedTask(task, reason.kind, reason.error, None, letter.enqueued_at))
    return found


def input_of(record: RunRecord, index: int, bundle: str | None, variables: dict[str, str]) -> FoundTask:
    """Return the task of a run's input as this machine has it: with the run's files as they are now.

    `bundle`: the pool's own files, for a run that named none. Raises `CommandError`.
    """
    plan, items = record.plan, record.items()
    results = {document["index"]: document for document in record.results()}
    item = items[index]
    if missing := [each for each in item.after if results.get(each, {}).get("status") != "succeeded"]:
        what = f"input {index} of run {plan.name!r} waits for input {missing[0]}, which has not succeeded"
        raise CommandError(what, Exit.FAILED)
    if plan.files is None and bundle is None:
        what = f"the run {plan.name!r} named no files, and its pool has none; give them by --file"
        raise CommandError(what, Exit.NOT_FOUND)
    task = TaskItem(
        client=plan.name,
        job=plan.job,
        task_id=str(index),
        command=item.command,
        params=with_values(item.arguments, lambda number: results[number].get("value")),
        uid=f"{plan.name}:{index}",
        bundle=bundle or "",
        timeout=plan.timeout,
        memory_limit=plan.memory_limit,
    )
    notes = ["the pool does not keep this task: the run's files are used as they are now"]
    if plan.requirements is not None:
        notes.append("the packages of this Python are used, not those that the run required")
    error = results.get(index, {}).get("error")
    return FoundTask(task, error, plan.files, variables, tuple(notes))
