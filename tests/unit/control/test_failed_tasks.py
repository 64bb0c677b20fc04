"""An agent keeps the tasks that fail on it, at a bounded rate."""

from __future__ import annotations

import asyncio

import pytest

from batchflow.protocol.failed_tasks import FailedTask
from batchflow.protocol.wire import TaskItem
from batchflow.testing.storage import MemoryContainer, MemoryStorage
from node_agent.control.failed_tasks import BURST, PACE, FailedTasks
from tests.support.waiting import eventually


def failure(number: int) -> FailedTask:
    task = TaskItem("me", "job", str(number), "x.py", [], f"0a0a0a0a0a0a:{number}", "b")
    return FailedTask(task, "TaskFailed", "no", "host", 1.0)


class Stuck(MemoryContainer):
    """A container whose first request is never answered."""

    asked = 0

    async def put(self, name: str, data: bytes, *, if_match: str | None = None, create: bool = False) -> str:
        self.asked += 1
        if self.asked == 1:
            await asyncio.Event().wait()
        return await super().put(name, data, if_match=if_match, create=create)


async def kept(out: MemoryContainer) -> set[str]:
    return {info.name async for info in out.list("failed/")}


@pytest.fixture
async def storage() -> MemoryStorage:
    storage = MemoryStorage()
    await storage.create_container("out")
    return storage


async def test_burst_is_kept_and_what_exceeds_the_rate_is_dropped(storage: MemoryStorage) -> None:
    now = 0.0
    tasks, out = FailedTasks(lambda: now), storage.container("out")
    for number in range(BURST + 7):
        tasks.keep(failure(number))
    now += PACE
    tasks.keep(failure(1000))
    tasks.keep(failure(1001))
    await tasks.flush(out)
    assert await kept(out) == {failure(number).blob for number in (*range(BURST), 1000)}


async def test_what_an_agent_has_not_written_when_it_ends_is_written_then(storage: MemoryStorage) -> None:
    """Also the task that was being written."""
    tasks, out = FailedTasks(), Stuck(storage, "out")
    running = asyncio.create_task(tasks.run(out))
    tasks.keep(failure(1))
    tasks.keep(failure(2))
    await eventually(lambda: out.asked)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await tasks.flush(out)
    assert await kept(out) == {failure(1).blob, failure(2).blob}


async def test_a_write_without_an_answer_holds_up_no_other(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node_agent.control.failed_tasks._TIMEOUT", 0.01)
    tasks, out = FailedTasks(), Stuck(storage, "out")
    tasks.keep(failure(1))
    tasks.keep(failure(2))
    await tasks.flush(out)
    assert await kept(out) == {failure(2).blob}
