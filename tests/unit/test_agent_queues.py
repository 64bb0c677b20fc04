"""An agent of a pool with several task queues and several results queues."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from batchflow.model import Status
from batchflow.ports.broker import OutgoingMessage, QueueRef, QueueSpec
from batchflow.protocol import documents, layout, wire
from node_agent.execution.outcomes import Execution, Outcome
from tests.support.agent_world import RESULTS, TASKS, World, succeed, task

MORE_TASKS = QueueRef("memory", "tasks2")
MORE_RESULTS = QueueRef("memory", "results2")


async def sharded(**behaviours: Any) -> tuple[World, dict[str, Any]]:
    """A world with two queues of each kind, and what an agent's configuration says of them."""
    world = await World.make(**behaviours)
    await world.broker.create_queue(QueueSpec("tasks2", lock_duration=5.0))
    await world.broker.create_queue(QueueSpec("results2", sessions=True))
    access = [
        tuple(documents.QueueAccess(queue, "Endpoint=sb://memory/") for queue in queues)
        for queues in ((TASKS, MORE_TASKS), (RESULTS, MORE_RESULTS))
    ]
    return world, {"task_queues": access[0], "results_queues": access[1]}


async def put(world: World, queue: QueueRef, *tasks: wire.TaskItem) -> None:
    """A message for each task."""
    async with await world.broker.sender(queue) as sender:
        for each in tasks:
            body = wire.join("tasks", [wire.encode(each)])
            await sender.send(OutgoingMessage(body, f"m{next(world.numbers)}"))


async def results_of(world: World, client: str, count: int) -> list[wire.ResultItem]:
    """The results in a client's mailbox, in whichever queue it is."""
    mailbox = wire.mailbox_id("job", client)
    queue = layout.queue_for((RESULTS, MORE_RESULTS), mailbox)
    found: list[wire.ResultItem] = []
    async with asyncio.timeout(30.0), await world.broker.mailbox(queue, mailbox) as link:
        while len(found) < count:
            delivery = await link.receive(30.0)
            assert delivery is not None
            found += [item for item in wire.decode(delivery.body) if isinstance(item, wire.ResultItem)]
            await link.complete(delivery)
    return found


async def test_an_agent_takes_from_every_task_queue() -> None:
    """And every client finds its results in the queue that its mailbox is in."""
    world, shards = await sharded()
    clients = [f"client-{number}" for number in range(6)]
    where = {layout.queue_for((RESULTS, MORE_RESULTS), f"job/{client}") for client in clients}
    assert where == {RESULTS, MORE_RESULTS}
    for number, client in enumerate(clients):
        await put(world, TASKS, task(2 * number, client=client))
        await put(world, MORE_TASKS, task(2 * number + 1, client=client))
    async with world.agent(**shards):
        for number, client in enumerate(clients):
            got = {result.uid for result in await results_of(world, client, 2)}
            assert got == {f"abc123:{2 * number}", f"abc123:{2 * number + 1}"}
        for queue in ("tasks", "tasks2"):
            await world.until(partial(_empty, world, queue))


async def _empty(world: World, queue: str) -> bool:
    figures = await world.broker.figures(queue)
    return not figures.active and not figures.scheduled


def _has_begun(world: World, count: int) -> bool:
    return len(world.slots[0].begun) >= count


async def test_a_task_goes_back_into_the_queue_that_it_came_from() -> None:
    """Only there a copy that is made again is known as a duplicate."""
    gate = asyncio.Event()

    async def held(execution: Execution) -> Outcome:
        await gate.wait()
        return succeed(execution)

    world, shards = await sharded(held=held)
    await put(world, MORE_TASKS, task(0, "held"))
    async with world.doomed(**shards) as agent:
        await world.until(lambda: bool(world.slots[0].begun))
        agent.drain(0.0)
        await world.until(lambda: "send tasks2" in world.faults.calls)
    assert "send tasks" not in world.faults.calls
    gate.set()


async def test_a_free_slot_gets_one_message_and_not_one_of_each_queue() -> None:
    """Once both queues have given something, they are listened to in turn."""
    gates = [asyncio.Event() for _ in range(20)]

    async def held(execution: Execution) -> Outcome:
        await gates[int(execution.task_id)].wait()
        return Outcome(Status.SUCCEEDED, b"1", started_at=1.0, finished_at=9.0)

    world, shards = await sharded(held=held)
    await put(world, TASKS, *[task(number, "held") for number in range(0, 20, 2)])
    await put(world, MORE_TASKS, *[task(number, "held") for number in range(1, 20, 2)])
    async with world.agent(**shards):
        for done in range(1, 20):
            await world.until(partial(_has_begun, world, done))
            gates[int(world.slots[0].begun[done - 1].rpartition(":")[2])].set()
        gates[-1].set()
        for gate in gates:
            gate.set()
        assert len(await results_of(world, "client", 20)) == 20
    copies = [call for call in world.faults.calls if call.startswith("send tasks")]
    assert len(copies) <= 1
