"""The loop of a slot: tasks are prepared, started, followed and ended in their order."""

from __future__ import annotations

import asyncio

from node_agent.execution.resources import TaskResources
from node_agent.execution.slot_loop import SlotLoop
from node_agent.scheduling import events as to
from tests.support.agent_world import FakeBundles, FakeRunning, FakeSlot, behave, task
from tests.support.slot_bench import ANY_TIME


def follows(commands: list[to.Command]) -> list[tuple[int, ...]]:
    return [each.tasks for each in commands if isinstance(each, to.Follow)]


async def test_what_follows_before_the_slot_was_given_its_first_task() -> None:
    """A start and what follows it may come in one breath: each runs once, in this order, and what was
    prepared and not started does not."""
    slot = FakeSlot(behave())
    ended: list[int] = []
    free = asyncio.Event()

    def feed(*events: to.Event) -> None:
        for event in events:
            match event:
                case to.Prepared():
                    loop.start((1,), ANY_TIME)
                    loop.follow({3: task(3), 4: task(4)}, ANY_TIME)
                case to.Ended(number):
                    ended.append(number)
                case to.Freed():
                    free.set()

    resources = TaskResources("agent", FakeBundles(), None, None, FakeRunning(), 1024, 1024)  # type: ignore[arg-type]
    loop = SlotLoop(0, slot, resources, feed=feed)
    serving = asyncio.create_task(loop.serve())
    loop.prepare({1: task(1), 2: task(2)})
    async with asyncio.timeout(20):
        await free.wait()
    serving.cancel()
    assert ended == [1, 3, 4]
    assert slot.begun == [task(number).uid for number in ended]
