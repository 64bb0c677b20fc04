"""Results that wait for those of their companions, and those that do not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from batchflow.ports.broker import QueueSpec
from batchflow.protocol import wire
from batchflow.testing import MemoryBroker
from node_agent.control.problems import Problems
from node_agent.links.result_sender import ResultSender
from node_agent.scheduling.load_policy import HOLD
from tests.support.agent_world import RESULTS

PATIENCE = 20.0


class RunningSender:
    """A result sender at work, and the messages that left it."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.more_soon = False
        self.waits = 0
        """How often results have waited for more."""
        self.sent: list[tuple[int, ...]] = []
        self._wake = asyncio.Event()
        self.sender = ResultSender(
            broker,
            RESULTS,
            "agent",
            Problems(lambda: None),
            accepted=self._accepted,
            too_large=lambda task, error: None,
            blocked=lambda blocked: None,
            opened=lambda: None,
            hold=self._hold,
        )

    def _hold(self) -> float:
        self.waits += 1
        return HOLD if self.more_soon else 0.0

    def _accepted(self, tasks: Sequence[int]) -> None:
        self.sent.append(tuple(tasks))
        self._wake.set()

    def put(self, task: int, mailbox: str = "job/client") -> None:
        self.sender.put(task, mailbox, wire.dumps({"uid": f"a:{task}"}))

    async def until(self, count: int) -> None:
        """Wait until so many messages have left."""
        async with asyncio.timeout(PATIENCE):
            while len(self.sent) < count:
                self._wake.clear()
                await self._wake.wait()


@pytest.fixture
async def results() -> AsyncIterator[RunningSender]:
    broker = MemoryBroker()
    await broker.create_queue(QueueSpec("results", sessions=True))
    results = RunningSender(broker)
    running = asyncio.create_task(results.sender.run())
    yield results
    running.cancel()
    await asyncio.wait([running])


async def test_a_lone_result_leaves_at_once(results: RunningSender) -> None:
    """Nothing else is about to come."""
    for number in range(3):
        results.put(number)
        await results.until(number + 1)
    assert results.sent == [(0,), (1,), (2,)]


async def test_results_of_a_pack_leave_together(results: RunningSender) -> None:
    """With the last of them, although they come one after the other."""
    results.more_soon = True
    results.put(0)
    await asyncio.sleep(0)
    results.put(1)
    await asyncio.sleep(0)
    results.more_soon = False
    results.put(2)
    await results.until(1)
    assert results.sent == [(0, 1, 2)]


async def test_a_straggler_does_not_hold_the_results_of_its_companions(results: RunningSender) -> None:
    """They wait a moment for it, and leave."""
    results.more_soon = True
    results.put(0)
    results.put(1)
    await results.until(1)
    assert results.sent == [(0, 1)]
    assert results.more_soon


async def test_results_of_many_mailboxes_wait_once(results: RunningSender) -> None:
    """One after the other, an agent that serves a hundred sessions would send a message in each wait."""
    results.more_soon = True
    for number in range(10):
        results.put(number, f"job/client-{number}")
    await results.until(10)
    assert results.waits == 1
