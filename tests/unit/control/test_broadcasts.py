"""The agent and the orders of broadcasts, on memory ports."""

from __future__ import annotations

import asyncio
import time

from batchflow.model import Status
from batchflow.protocol import layout, wire
from batchflow.protocol.broadcasts import Broadcasts, order_of
from node_agent.control.broadcast_record import SETTLED
from node_agent.control.heartbeat import node_id
from node_agent.execution.outcomes import Execution, Outcome
from tests.support.agent_world import World, succeed, task

FAST = 0.02
"""Seconds between two looks of the agent."""


async def order(world: World, *tasks: wire.TaskItem) -> None:
    """Order these tasks of the agent's node, each for itself, in the place of all that was ordered."""
    ends = time.time() + 60.0
    orders = [order_of("session", ends, [(node_id(), wire.encode(each))]) for each in tasks]
    await world.ctl.put(layout.BROADCAST_BLOB, Broadcasts(tuple(orders)).encode())


async def test_an_ordered_task_runs_once_beside_busy_slots() -> None:
    """Although every slot is busy; looked at again and again, it runs once, and its slot is closed."""
    gate = asyncio.Event()

    async def held(execution: Execution) -> Outcome:
        await gate.wait()
        return succeed(execution)

    world = await World.make(held=held)
    async with world.agent(heartbeat_interval=FAST):
        await world.submit(task(0, "held"))
        await world.until(lambda: bool(world.slots[0].begun))
        await order(world, task(1), task(2))
        results = await world.results(2)
        assert {result.uid for result in results} == {task(1).uid, task(2).uid}
        assert all(result.status is Status.SUCCEEDED for result in results)
        await order(world, task(1), task(2), task(3))
        assert [result.uid for result in await world.results(1)] == [task(3).uid]
        await world.until(lambda: set(world.begun.noted.values()) == {SETTLED})
        assert [uid for slot in world.beside for uid in slot.begun] == [task(n).uid for n in (1, 2, 3)]
        gate.set()
        await world.results(1)


async def test_a_task_that_a_killed_agent_ran_is_reported_and_not_run_again() -> None:
    gate = asyncio.Event()

    async def held(execution: Execution) -> Outcome:
        await gate.wait()
        return succeed(execution)

    world = await World.make(held=held)
    async with world.doomed(heartbeat_interval=FAST):
        await order(world, task(1, "held"))
        await world.until(lambda: bool(world.beside and world.beside[0].begun))
    async with world.agent(heartbeat_interval=FAST):
        (result,) = await world.results(1)
        assert (result.kind, result.uid) == ("WorkerDied", task(1).uid)
        await world.until(lambda: world.begun.noted[task(1).uid] == SETTLED)
    assert len(world.beside) == 1
    assert world.forgotten == [task(1).uid]


async def test_a_result_that_did_not_leave_is_sent_by_the_next_agent() -> None:
    world = await World.make()
    kept = wire.encode(wire.result_of(task(1), status=Status.SUCCEEDED, host="h", value="kept"))
    world.begun.ended(task(1).uid, kept)
    await order(world, task(1))
    async with world.agent(heartbeat_interval=FAST):
        (result,) = await world.results(1)
    assert result.value == "kept"
    assert world.beside == []


async def test_a_running_task_is_killed_when_its_order_is_gone() -> None:
    """The client has its results, or left: nothing waits for this one."""

    async def endless(execution: Execution) -> Outcome:
        await asyncio.Event().wait()
        return succeed(execution)

    world = await World.make(endless=endless)
    async with world.agent(heartbeat_interval=FAST):
        await order(world, task(1, "endless"), task(2))
        await world.until(lambda: bool(world.beside and world.beside[0].begun))
        await order(world)
        await world.until(lambda: world.beside[0].killed == [task(1).uid])
        await order(world, task(3))
        assert [result.uid for result in await world.results(1)] == [task(3).uid]
    assert task(2).uid not in [uid for slot in world.beside for uid in slot.begun]


async def test_an_order_that_is_over_is_not_begun() -> None:
    world = await World.make()
    late = order_of("dead", 0.0, [(node_id(), wire.encode(task(1)))])
    good = order_of("session", time.time() + 60.0, [(node_id(), wire.encode(task(2)))])
    await world.ctl.put(layout.BROADCAST_BLOB, Broadcasts((late, good)).encode())
    async with world.agent(heartbeat_interval=FAST):
        assert [result.uid for result in await world.results(1)] == [task(2).uid]
    assert task(1).uid not in world.begun.noted


async def test_a_draining_agent_finishes_what_it_runs_and_begins_nothing() -> None:
    gate = asyncio.Event()

    async def held(execution: Execution) -> Outcome:
        await gate.wait()
        return succeed(execution)

    world = await World.make(held=held)
    async with world.agent(heartbeat_interval=FAST) as agent:
        await order(world, task(1, "held"))
        await world.until(lambda: bool(world.beside and world.beside[0].begun))
        agent.drain(60.0)
        await order(world, task(1, "held"), task(2))
        gate.set()
        assert [result.uid for result in await world.results(1)] == [task(1).uid]
        await world.until(lambda: agent.exit_reason is not None)
    assert task(2).uid not in world.begun.noted
