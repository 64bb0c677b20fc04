"""Clocks differ: who lives and what is old is told by the services' clock alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from batchflow.client import Client
from batchflow.errors import MailboxInUse, NoAgents
from batchflow.pool import Pool
from batchflow.protocol.documents import Presence
from batchflow.protocol.layout import session_blob
from batchflow.sessions.records.checkpoint import Checkpoint
from tests.support.agent import Agent
from tests.support.services import Doubles
from tests.support.session_parts import parts_of
from tests.support.waiting import eventually, within

SKEWS = [-7 * 86400.0, -15.0, 15.0, 3600.0]
"""Seconds that the services' clock is ahead of this machine's."""


@pytest.fixture(params=SKEWS)
async def skewed(request: pytest.FixtureRequest, doubles: Doubles) -> float:
    ahead: float = request.param
    doubles.clock.ahead = ahead
    return ahead


async def test_agents_live_whatever_the_clock_says(skewed: float, pool: Pool, doubles: Doubles) -> None:
    """Their heartbeats are fresh; a session works.

    Fifteen seconds of skew used to make living agents look dead.
    """
    agent = Agent(doubles, pool)
    await agent.beat(interval=5.0)
    assert len(await pool.heartbeats()) == 1
    async with pool.session("c") as session:
        task = await session.submit("x.py", args=1)
        await agent.answer(*await agent.take())
        assert await within(task) == [1]
        assert not parts_of(session).context.problems.first


async def test_agents_that_are_gone_do_not_live_by_a_slow_clock(
    skewed: float, pool: Pool, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old heartbeat is old, though this machine's clock may not have come to it yet."""
    monkeypatch.setattr("batchflow.sessions.agents_watch._AGENTS_PATIENCE", 0.0)
    await Agent(doubles, pool).beat(interval=5.0)
    doubles.broker.advance(16)
    assert await pool.heartbeats() == []
    async with pool.session("c") as session:
        task = await session.submit("x.py")
        with pytest.raises(NoAgents):
            await within(task.outcome())


async def test_a_living_holder_is_named_whatever_the_clock_says(
    skewed: float, pool: Pool, doubles: Doubles
) -> None:
    """At once; its sign of life is as old as the storage says."""
    async with pool.session("c"):
        await eventually(lambda: doubles.storage.names("sessions/"))
        with pytest.raises(MailboxInUse, match="process"):
            await within(pool.session("c"))


async def test_a_dead_holder_is_waited_for_whatever_the_clock_says(
    skewed: float, pool: Pool, doubles: Doubles
) -> None:
    """It does not live by a clock that was ahead when it wrote."""
    presence = Presence("a machine that is gone", "dead", 1e12, 5.0)
    await pool.runtime.ctl.put(session_blob("default", "c"), presence.encode())
    doubles.broker.advance(16)
    async with await doubles.broker.mailbox(pool.runtime.manifest.results_queues[0], "default/c"):
        opening = asyncio.ensure_future(pool.session("c"))
        await eventually(lambda: ("get", session_blob("default", "c")) in doubles.storage.calls)
        doubles.broker.advance(31)
        session = await within(opening)
    await session.aclose()


async def test_only_results_from_before_a_crash_are_marked_repeated(
    skewed: float, pool: Pool, doubles: Doubles, connect: Callable[..., Client]
) -> None:
    """What is `repeated` goes by when the broker got the outcome and the dead holder its sign of life."""
    agent = Agent(doubles, pool)
    async with pool.session("c") as first:
        await first.submit_many("x.py", range(2))
        items = await agent.take(2)
    async with await doubles.broker.mailbox(pool.runtime.manifest.results_queues[0], "default/c") as mailbox:
        checkpoint = Checkpoint.decode(await mailbox.get_state())
        checkpoint.open("dead")
        await mailbox.set_state(checkpoint.encode())
    await agent.answer(items[0])
    await pool.runtime.ctl.put(session_blob("default", "c"), Presence("x", "dead", 1.0, 5.0).encode())
    doubles.broker.advance(16)
    await agent.answer(items[1])
    async with pool.session("c") as second:
        found = {result.value[0]: result.repeated async for result in second.results()}
    assert found == {0: True, 1: False}
