"""The last look of an agent that was idle, and what comes of it."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from node_agent.execution.outcomes import Execution, Outcome
from node_agent.links import task_queue
from tests.support.agent_world import TASKS, World, succeed, task


async def test_the_last_look_ends_with_what_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task found by the last look fills the only slot: the next one is for others to take.

    An agent that went on looking took every message and, as its slot was busy, handed each back at once, only
    to find it again, for as long as its task ran.
    """
    monkeypatch.setattr(task_queue, "LAST_LOOK", 5.0)
    gate = asyncio.Event()

    async def held(execution: Execution) -> Outcome:
        await gate.wait()
        return succeed(execution)

    world = await World.make(held=held)
    async with world.agent(idle_exit=0.1) as agent:

        async def announced() -> bool:
            return any(beat.state == "exiting" for beat in await world.heartbeats())

        await world.until(announced)
        await world.submit(task(0, "held"))
        await world.until(lambda: bool(world.slots[0].begun))
        await world.submit(task(1))
        await anyio.wait_all_tasks_blocked()
        async with await world.broker.receiver(TASKS) as another:
            found = await another.receive(0.0)
            assert found is not None
            await another.complete(found)
        gate.set()
        await world.results(1)
        assert agent.exit_reason is None
