"""A client of the chaos run, as a process that may be killed at any moment.

It submits its tasks in batches and writes a record of all that it does to standard output, each before
anything can follow from it. Now and then arguments and result are so large that they travel by reference. It
ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import zlib
from dataclasses import astuple
from pathlib import Path

from batchflow import Client, RetryPolicy, Session
from batchflow.errors import ServiceError
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
                    _submit_all(session, mailbox, holder, name, range(first, last), batch, seconds)
                )
                await asyncio.to_thread(sys.stdin.read)
                reading.cancel()
                submitting.cancel()


async def _submit_all(
    session: Session, mailbox: str, holder: str, name: str, numbers: range, batch: int, seconds: float
) -> None:
    for start in range(0, len(numbers), batch):
        tasks = [f"{name}:{number}" for number in numbers[start : start + batch]]
        await _submit(session, mailbox, holder, tasks, seconds)


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
        status = result.status.value if result.error is None else f"{result.status.value}: {result.error}"
        shown = history.Shown(time.monotonic(), mailbox, holder, result.tag, status, answer, result.repeated)
        record(shown)


if __name__ == "__main__":
    config, name, life, first, last, batch, seconds, *journal = sys.argv[1:]
    kept = Path(journal[0]) if journal else None
    try:
        asyncio.run(
            run(Path(config), name, int(life), int(first), int(last), int(batch), float(seconds), kept)
        )
    except ServiceError as error:
        sys.stderr.write(f"client {name}, life {life}: {error}\n")
        sys.exit(os.EX_TEMPFAIL if error.retryable else 1)
