"""A slot's queue gives its tasks back."""

from __future__ import annotations

import asyncio
from pathlib import Path

from batchflow.protocol.bundle import Bundle
from node_agent.bundles.workspace import Place
from node_agent.execution.slot_queue import QueuedTask, SlotQueue
from tests.support.agent_world import FakeSlot, behave, task


async def test_recall_while_the_directory_is_prepared_takes_every_task_back() -> None:
    """Nothing has begun, so nothing runs."""
    prepared = asyncio.Event()

    class Slow(FakeSlot):
        async def prepare(self, bundle: Bundle, files: Path) -> Place:
            await prepared.wait()
            return await super().prepare(bundle, files)

    slot = Slow(behave())
    tasks = [QueuedTask(number, task(number)) for number in range(3)]
    queue = SlotQueue(slot, tasks, lambda ended: None)
    running = asyncio.create_task(queue.run(Bundle(()), Path()))
    await asyncio.sleep(0)
    assert queue.recall() == tasks
    prepared.set()
    await running
    assert slot.begun == []
