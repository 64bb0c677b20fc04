"""A client of the chaos run, as a process that may be killed at any moment.

It submits its tasks in batches and writes a record of all that it does to standard output, each before
anything can follow from it. It ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import astuple
from pathlib import Path

from batchflow import Client, RetryPolicy, Session
from tests.model import history

JOB = "chaos"
POOL = "chaos"
_RETRY = RetryPolicy(max_attempts=10, backoff=0.05, max_backoff=0.5, on=("WorkerDied",))


def record(entry: history.Record) -> None:
    """One line, in one write."""
    os.write(1, (json.dumps([type(entry).__name__, *astuple(entry)]) + "\n").encode())


async def run(config: Path, name: str, life: int, first: int, last: int, batch: int, seconds: float) -> None:
    """One life of the client `name`: submits the tasks from `first` to before `last`."""
    mailbox, holder = f"{JOB}/{name}", f"{name}.{life}"
    async with Client.from_config(config) as client:
        pool = await client.pool(POOL)
        async with pool.session(name, job=JOB) as session:
            record(history.Opened(time.monotonic(), mailbox, holder))
            reading = asyncio.create_task(_read(session, mailbox, holder))
            for start in range(first, last, batch):
                numbers = range(start, min(start + batch, last))
                await _submit(session, mailbox, holder, [f"{name}:{number}" for number in numbers], seconds)
            await asyncio.to_thread(sys.stdin.read)
            reading.cancel()


async def _submit(session: Session, mailbox: str, holder: str, tasks: list[str], seconds: float) -> None:
    for task in tasks:
        record(history.Submitted(time.monotonic(), mailbox, holder, task))
        await session.submit("work.py", args=[task, seconds], tag=task, retry=_RETRY)
    await session.flush()
    for task in tasks:
        record(history.Accepted(time.monotonic(), task))


async def _read(session: Session, mailbox: str, holder: str) -> None:
    async for result in session.results(follow=True):
        answer = result.value if isinstance(result.value, str) else None
        status = result.status.value if result.error is None else f"{result.status.value}: {result.error}"
        record(history.Shown(time.monotonic(), mailbox, holder, result.tag, status, answer))


if __name__ == "__main__":
    config, name, life, first, last, batch, seconds = sys.argv[1:]
    asyncio.run(run(Path(config), name, int(life), int(first), int(last), int(batch), float(seconds)))
