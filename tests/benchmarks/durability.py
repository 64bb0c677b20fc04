"""What it costs to remember tasks, and how long it takes to get over an agent's death."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from batchflow import Client
from tests.benchmarks.harness import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.benchmarks.cases import Effort

HERE = Path(__file__).parent


def outstanding(effort: Effort) -> Iterator[Figure]:
    """Resident memory of a client for each task that is accepted and not done, its handle kept."""
    numbers = [100_000, 1_000_000] if effort.runs > 1 else [2_000]
    program = [sys.executable, str(HERE / "outstanding.py"), *map(str, numbers)]
    finished = subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True)
    for number, figure in zip(numbers, json.loads(finished.stdout), strict=True):
        name = f"memory of an outstanding task, {number:,} on one client"
        yield Figure(name, [figure], "B", at_most=1536.0)


def recovery(effort: Effort) -> Iterator[Figure]:
    """From `kill -9` of an agent to the outcome of its task, without the second that the task takes."""
    lock = None if effort.runs > 1 else 5.0
    values = asyncio.run(_recoveries(3 if effort.runs > 1 else 1, lock))
    locked = "the default lock" if lock is None else f"a lock of {lock:.0f} s"
    most = 35.0 if lock is None else lock + 5.0
    yield Figure(f"recovery of a task after kill -9 of its agent, {locked}", values, "s", at_most=most)


async def _recoveries(times: int, lock: float | None) -> list[float]:
    """`lock`: seconds; None: the default."""
    taken = []
    async with _client(lock) as client:
        pool = await client.ensure_pool("recovery", files=[HERE / "tasks"])
        await pool.wait_ready(2)
        async with pool.session() as session:
            events = session.events()
            for _ in range(times):
                task = await session.submit("agent.py")
                async for event in events:
                    if event.kind == "log" and event.task_id == task.id:
                        break
                killed_at = time.monotonic()
                os.kill(int(event.message), signal.SIGKILL)
                await task
                taken.append(time.monotonic() - killed_at - 1.0)
                await pool.wait_ready(2)
            await events.aclose()
    return taken


def _client(lock: float | None) -> Client:
    """On a local cloud of its own, with two nodes of one slot."""
    if lock is None:
        return Client.local(nodes=2)
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
        config.write(f'target = "local"\n[pool]\nnodes = 2\nslots = 1\nlock_duration = {lock}\n')
        config.flush()
        return Client.from_config(config.name)
