"""A client of the chaos run, as a process that may be killed at any moment.

It submits its tasks in batches and writes a record of all that it does to standard output, each before
anything can follow from it. Now and then arguments and result are so large that they travel by reference. It
ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
import zlib
from dataclasses import astuple
from pathlib import Path
from typing import Any

from batchflow import Client, RetryPolicy, Session, Task
from batchflow.errors import ServiceError
from tests.chaos import graphs
from tests.model import history

JOB = "chaos"
POOL = "chaos"
_LARGE = " " * 200_000
"""Travels by reference, in both directions."""
_ONE_IN = 50
_RETRY = RetryPolicy(max_attempts=10, backoff=0.05, max_backoff=0.5, on=("WorkerDied",))


def record(entry: history.Record) -> None:
    """One line, in one write."""
    os.write(1, (json.dumps([type(entry).__name__, *astuple(entry)]) + "\n").encode())


def tell_tasks() -> None:
    """Where each asyncio task stands: for a client that does not end."""
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stderr)


async def run(
    config: Path,
    name: str,
    life: int,
    first: int,
    last: int,
    batch: int,
    seconds: float,
    journal: Path | None,
    notes: Path | None,
) -> None:
    """One life of the client `name`: submits the tasks from `first` to before `last`."""
    mailbox, holder = f"{JOB}/{name}", f"{name}.{life}"
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, tell_tasks)
    async with Client.from_config(config) as client:
        pool = await client.pool(POOL)
        async with pool.session(name, job=JOB, journal=journal) as session:
            record(history.Opened(time.monotonic(), mailbox, holder, journal is not None))
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(_read(session, mailbox, holder))
                submitting = group.create_task(
                    _submit_all(session, mailbox, holder, name, range(first, last), batch, seconds, notes)
                )
                await asyncio.to_thread(sys.stdin.read)
                reading.cancel()
                submitting.cancel()


async def _submit_all(
    session: Session,
    mailbox: str,
    holder: str,
    name: str,
    numbers: range,
    batch: int,
    seconds: float,
    notes: Path | None,
) -> None:
    known: dict[int, Task[Any]] = {}
    for start in range(0, len(numbers), batch):
        some = numbers[start : start + batch]
        if notes is None:
            await _submit(session, mailbox, holder, [f"{name}:{number}" for number in some], seconds)
            continue
        for number in some:
            known[number] = await _submit_node(
                session, mailbox, holder, name, number, known, [seconds, None, "", str(notes)]
            )
        await session.flush()
        for number in some:
            record(history.Accepted(time.monotonic(), f"{name}:{number}"))


async def _submit_node(
    session: Session,
    mailbox: str,
    holder: str,
    name: str,
    number: int,
    known: dict[int, Task[Any]],
    arguments: list[Any],
) -> Task[Any]:
    """Submit a task of a graph. It waits for those alone that this life of the client has submitted."""
    task, node = f"{name}:{number}", graphs.node(name, number)
    takes = [each for each in node.takes if each in known]
    after = [each for each in node.after if each in known]
    inputs, others = [f"{name}:{each}" for each in takes], [f"{name}:{each}" for each in after]
    record(
        history.Submitted(
            time.monotonic(), mailbox, holder, task, inputs=inputs, after=others, passes=node.passes
        )
    )
    return await session.submit(
        "work.py",
        args=[task, *arguments, node.fails, [known[each] for each in takes]],
        after=[known[each] for each in after],
        task_id=task,
        tag=task,
        retry=_RETRY,
        on_failure="pass" if node.passes else None,
    )


async def _submit(session: Session, mailbox: str, holder: str, tasks: list[str], seconds: float) -> None:
    for task in tasks:
        record(history.Submitted(time.monotonic(), mailbox, holder, task))
        payload = _LARGE if hash_of(task) % _ONE_IN == 0 else ""
        await session.submit("work.py", args=[task, seconds, None, payload], tag=task, retry=_RETRY)
    await session.flush()
    for task in tasks:
        record(history.Accepted(time.monotonic(), task))


def hash_of(task: str) -> int:
    """The same in every process."""
    return zlib.crc32(task.encode())


async def _read(session: Session, mailbox: str, holder: str) -> None:
    async for result in session.results(follow=True):
        answer = result.value.rstrip() if isinstance(result.value, str) else None
        status = result.status.value
        if result.kind == "DependencyFailed":
            status += f" {result.kind}"
        elif result.error is not None:
            status += f": {result.error}"
        named = re.match(r"it waited for task (\S+) ", result.error or "")
        shown = history.Shown(
            time.monotonic(),
            mailbox,
            holder,
            result.tag,
            status,
            answer,
            result.repeated,
            None if named is None else named[1],
        )
        record(shown)


if __name__ == "__main__":
    config, name, life, first, last, batch, seconds, *paths = sys.argv[1:]
    kept, notes = (Path(path) if path else None for path in paths)
    try:
        asyncio.run(
            run(Path(config), name, int(life), int(first), int(last), int(batch), float(seconds), kept, notes)
        )
    except ServiceError as error:
        sys.stderr.write(f"client {name}, life {life}: {error}\n")
        sys.exit(os.EX_TEMPFAIL if error.retryable else 1)
