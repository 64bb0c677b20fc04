"""An agent keeps the tasks that fail on it, at a bounded rate."""

from __future__ import annotations

import asyncio

from batchflow.protocol.failed_tasks import FailedTask
from batchflow.protocol.wire import TaskItem
from batchflow.testing.storage import MemoryStorage
from node_agent.control.failed_tasks import BURST, PACE, FailedTasks
from tests.support.waiting import eventually


def failure(number: int) -> FailedTask:
    task = TaskItem("me", "job", str(number), "x.py", [], f"0a0a0a0a0a0a:{number}", "b")
    return FailedTask(task, "TaskFailed", "no", "host", 1.0)


async def test_burst_is_kept_and_what_exceeds_the_rate_is_counted() -> None:
    now = 0.0
    tasks = FailedTasks(lambda: now)
    for number in range(BURST + 7):
        tasks.keep(failure(number))
    assert tasks.dropped == 7
    now += PACE
    tasks.keep(failure(1000))
    tasks.keep(failure(1001))
    assert tasks.dropped == 8
    storage = MemoryStorage()
    await storage.create_container("out")
    out = storage.container("out")
    running = asyncio.create_task(tasks.run(out))
    await eventually(lambda: not tasks.waiting)
    running.cancel()
    names = [info.name async for info in out.list("failed/")]
    assert len(names) == BURST + 1
    assert failure(1000).blob in names
