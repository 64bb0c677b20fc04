"""The messages that an agent holds: what the scheduler is told of them, and which queues are listened to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from batchflow.ports.broker import OutgoingMessage, QueueRef, QueueSpec
from batchflow.protocol import wire
from batchflow.testing.broker import MemoryBroker
from node_agent.control.problems import Problems
from node_agent.links.incoming import IncomingMessages
from node_agent.scheduling import events as to
from node_agent.scheduling import queue_rotation
from tests.support.agent_world import task
from tests.support.waiting import eventually

QUEUES = (QueueRef("memory", "one"), QueueRef("memory", "two"))
AT = 1000.0
"""The broker's time."""


class Held:
    """The messages of two queues, as a scheduler is told of them."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self.arrived: list[to.Arrived] = []
        self.on_arrival: Callable[[], None] = lambda: None
        self.incoming = IncomingMessages(
            broker,
            QUEUES,
            lock_duration=30.0,
            problems=Problems(lambda: None),
            feed=self._feed,
            settled=set[str](),
            opened=lambda: None,
        )
        self.incoming.clock.now = lambda: AT

    def _feed(self, *events: to.Event) -> None:
        self.arrived += [event for event in events if isinstance(event, to.Arrived)]
        self.on_arrival()

    async def put(self, number: int, queue: QueueRef) -> None:
        async with await self.broker.sender(queue) as sender:
            await sender.send(OutgoingMessage(wire.join("tasks", [wire.encode(task(number))]), f"m{number}"))

    def labels(self) -> list[str]:
        return [each.tasks[0].task_id for each in self.arrived]


@asynccontextmanager
async def _held() -> AsyncIterator[Held]:
    broker = MemoryBroker(clock=lambda: AT)
    for queue in QUEUES:
        await broker.create_queue(QueueSpec(queue.entity, lock_duration=30.0))
    held = Held(broker)
    services: list[asyncio.Future[None]] = [
        asyncio.ensure_future(service())
        for name, service in held.incoming.services().items()
        if name.startswith("receive")
    ]
    try:
        yield held
    finally:
        held.incoming.close()
        for service in services:
            service.cancel()
        await asyncio.gather(*services, return_exceptions=True)


async def test_a_message_is_as_old_as_it_may_be_and_at_its_lock_as_the_broker_says() -> None:
    """The node stood still for a minute after the broker had locked it."""
    async with _held() as held:
        held.incoming.clock.now = lambda: AT + 60.0
        await held.put(0, QUEUES[0])
        held.incoming.pull(True)
        await eventually(lambda: held.arrived)
    (arrived,) = held.arrived
    assert (arrived.age, arrived.age_at_lock) == (60.0, 0.0)


async def test_nothing_is_received_from_a_queue_whose_turn_ends_as_it_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The message that passed the turn on to it is the last one that is wanted."""
    monkeypatch.setattr(queue_rotation, "PATIENCE", 3600.0)
    async with _held() as held:
        for number, queue in enumerate(QUEUES):
            await held.put(number, queue)
        held.incoming.pull(True)
        await eventually(lambda: len(held.arrived) == 2)
        held.on_arrival = lambda: held.incoming.pull(False)
        await held.put(3, QUEUES[1])
        await held.put(2, QUEUES[0])
        await eventually(lambda: len(held.arrived) >= 3)
        for _ in range(20):
            await asyncio.sleep(0)
        assert held.labels()[2:] == ["2"]
        held.incoming.pull(True)
        await eventually(lambda: len(held.arrived) == 4)


async def test_nothing_is_received_where_messages_are_wanted_for_an_instant() -> None:
    """The queue's coroutine was waiting, and goes on when nothing is wanted any more."""
    async with _held() as held:
        await held.put(0, QUEUES[0])
        await asyncio.sleep(0)
        held.incoming.pull(True)
        held.incoming.pull(False)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not held.arrived
        held.incoming.pull(True)
        await eventually(lambda: held.arrived)
