"""A session of a pool with several task queues: one link each, and none waits for another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from batchflow import Client, PoolSpec, Session
from batchflow.errors import BrokerError, ConfigurationError
from batchflow.model import Status
from batchflow.ports.broker import OutgoingMessage, QueueRef
from tests.support.agent import Agent
from tests.support.services import Doubles
from tests.support.session_parts import parts_of
from tests.support.waiting import eventually, within

AWAY = BrokerError("connection refused", retryable=True)


class PartlyAway:
    """Links to some queues fail as long as these are away."""

    def __init__(self, doubles: Doubles) -> None:
        self._open = doubles.broker.sender
        self.away: set[str] = set()
        self.tried: list[tuple[str, str]] = []

    async def sender(self, queue: QueueRef) -> Any:
        link = await self._open(queue)
        send = link.send

        async def sending(*messages: OutgoingMessage) -> None:
            self.tried += [(queue.entity, message.message_id) for message in messages]
            await asyncio.sleep(0)  # a way, however short: the other links have their turn
            if queue.entity in self.away:
                raise AWAY
            await send(*messages)

        link.send = sending
        return link


@pytest.fixture
def partly(doubles: Doubles, monkeypatch: pytest.MonkeyPatch) -> PartlyAway:
    partly = PartlyAway(doubles)
    monkeypatch.setattr(doubles.broker, "sender", partly.sender)
    return partly


@pytest.fixture
async def session(client: Client, partly: PartlyAway) -> AsyncIterator[Session]:
    pool = await client.create_pool(PoolSpec("sharded", shards=3, files=({"x.py": b""},)))
    async with pool.session("c") as session:
        yield session


async def test_tasks_take_all_links(session: Session, partly: PartlyAway) -> None:
    """Whichever is free; each message goes once, under an id of its own."""
    for _ in range(30):
        await session.submit("x.py")
    await within(session.flush())
    assert len({queue for queue, _ in partly.tried}) == 3
    assert len({name for _, name in partly.tried}) == len(partly.tried)
    assert parts_of(session).sender.passed == 30


async def test_unavailable_queue_delays_only_its_own_tasks(
    session: Session, partly: PartlyAway, doubles: Doubles
) -> None:
    """Tasks go on through the others; what it holds is not told as accepted, and comes when it is back."""
    agent = Agent(doubles, parts_of(session).context)
    away = parts_of(session).context.runtime.manifest.task_queues[1].entity
    partly.away.add(away)
    tasks = [await session.submit("x.py", args=[number]) for number in range(30)]
    await eventually(lambda: any(queue == away for queue, _ in partly.tried))
    await eventually(lambda: sum(task.status is Status.SENDING for task in tasks) <= 2)
    held = next(number for number, task in enumerate(tasks) if task.status is Status.SENDING)
    assert parts_of(session).sender.passed == held
    partly.away.clear()
    await within(session.flush())
    assert all(task.status is Status.QUEUED for task in tasks)
    names = {name for queue, name in partly.tried if queue == away}
    again = [name for queue, name in partly.tried if queue == away]
    assert len(again) > len(names), "what failed was sent again under the same id"
    assert agent.messages == []


async def test_one_unavailable_queue_of_three_fails_waiting_calls(
    connect: Any, partly: PartlyAway, doubles: Doubles
) -> None:
    """Though the two others work: whoever waits for what it holds gets the error."""
    async with connect(patience=0.05) as client:
        pool = await client.create_pool(PoolSpec("sharded", shards=3, files=({"x.py": b""},)))
        async with pool.session("c") as session:
            partly.away.add(pool.runtime.manifest.task_queues[2].entity)
            for _ in range(9):
                await session.submit("x.py")
            await eventually(lambda: parts_of(session).context.problems.first)
            with pytest.raises(BrokerError, match="tasks3 has taken no tasks"):
                await within(session.flush())
            partly.away.clear()
            await eventually(lambda: not parts_of(session).context.problems.first)
            await within(session.flush())


@pytest.mark.parametrize("shards", [0, -1, 21, 1.5])
async def test_invalid_number_of_shards_is_refused(client: Client, shards: Any) -> None:
    """Refused before anything is made."""
    with pytest.raises(ConfigurationError, match="shards"):
        await client.create_pool(PoolSpec("sharded", shards=shards))
    assert [pool async for pool in client.pools()] == []
