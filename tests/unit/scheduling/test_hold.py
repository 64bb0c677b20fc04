"""Results that wait for those of their companions, and those that do not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from batchflow.ports.broker import QueueSpec
from batchflow.protocol import wire
from batchflow.protocol.packing import HOLD
from batchflow.testing import MemoryBroker
from node_agent.control.problems import Problems
from node_agent.links.result_sender import ResultSender
from tests.support.agent_world import RESULTS

PATIENCE = 20.0


class Desk:
    """An outbox at work, and what left it."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.more_soon = False
        self.sent: list[tuple[int, ...]] = []
        self._wake = asyncio.Event()
        self.outbox = ResultSender(
            broker,
            RESULTS,
            "agent",
            Problems(lambda: None),
            accepted=self._accepted,
            too_large=lambda task, error: None,
            blocked=lambda blocked: None,
            opened=lambda: None,
            hold=lambda: HOLD if self.more_soon else 0.0,
        )

    def _accepted(self, tasks: Sequence[int]) -> None:
        self.sent.append(tuple(tasks))
        self._wake.set()

    def put(self, task: int) -> None:
        self.outbox.put(task, "job/client", wire.dumps({"uid": f"a:{task}"}))

    async def until(self, count: int) -> None:
        """So many messages have left."""
        async with asyncio.timeout(PATIENCE):
            while len(self.sent) < count:
                self._wake.clear()
                await self._wake.wait()


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    broker = MemoryBroker()
    await broker.create_queue(QueueSpec("results", sessions=True))
    desk = Desk(broker)
    running = asyncio.create_task(desk.outbox.run())
    yield desk
    running.cancel()
    await asyncio.wait([running])


async def test_a_lone_result_leaves_at_once(desk: Desk) -> None:
    """Nothing else is about to come."""
    for number in range(3):
        desk.put(number)
        await desk.until(number + 1)
    assert desk.sent == [(0,), (1,), (2,)]


async def test_results_of_a_pack_leave_together(desk: Desk) -> None:
    """With the last of them, although they come one after the other."""
    desk.more_soon = True
    desk.put(0)
    await asyncio.sleep(0)
    desk.put(1)
    await asyncio.sleep(0)
    desk.more_soon = False
    desk.put(2)
    await desk.until(1)
    assert desk.sent == [(0, 1, 2)]


async def test_a_straggler_does_not_hold_the_results_of_its_companions(desk: Desk) -> None:
    """They wait a moment for it, and leave."""
    desk.more_soon = True
    desk.put(0)
    desk.put(1)
    await desk.until(1)
    assert desk.sent == [(0, 1)]
    assert desk.more_soon
