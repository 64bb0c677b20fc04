"""A service that stays away: every wait ends by an error that names it, and all is well when it is back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from batchflow.client import Client
from batchflow.errors import BrokerError, SessionClosed, StorageError
from batchflow.model import Status
from batchflow.session import Session
from tests.support.agent import Agent
from tests.support.services import Doubles
from tests.support.session_parts import parts_of
from tests.support.waiting import eventually, within

AWAY = BrokerError("connection refused", retryable=True)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried again soon."""
    monkeypatch.setattr("batchflow.support.backoff.LONGEST", 0.05)


@pytest.fixture
async def session(connect: Callable[..., Client], doubles: Doubles) -> AsyncIterator[Session]:
    """One that tells at the first failure that a service is away."""
    async with connect(patience=0.0, outbox=3, close_timeout=0.4) as client:
        pool = await client.ensure_pool("demo", files={"x.py": b""})
        await Agent(doubles, pool).beat()
        async with pool.session("c") as session:
            yield session


def take_broker_away(doubles: Doubles, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The client's mailbox is lost and none can be opened. Returns what brings the broker back."""
    mailbox = doubles.broker.mailbox

    async def refuse(*_: Any, **__: Any) -> None:
        raise AWAY

    monkeypatch.setattr(doubles.broker, "mailbox", refuse)
    doubles.broker.advance(60)
    return lambda: monkeypatch.setattr(doubles.broker, "mailbox", mailbox)


async def test_refused_sends_fail_every_waiting_call(session: Session, doubles: Doubles) -> None:
    """Whether they wait for room, for acceptance or for an outcome; back again, it gets the same messages.

    `flush` used to warn and to wait for ever.
    """
    events = session.events()
    doubles.broker.gate.clear()
    doubles.broker.faults.extend([AWAY] * 1000)
    tasks = await session.submit_many("x.py", range(3))
    waits = [
        asyncio.ensure_future(wait)
        for wait in (
            session.flush(),
            tasks[0].accepted(),
            session.submit("x.py"),
            tasks[1].outcome(),
            anext(session.results()),
        )
    ]
    await eventually(lambda: doubles.broker.tried)
    doubles.broker.gate.set()
    for wait in waits:
        with pytest.raises(BrokerError, match=r"no tasks.*tried again.*connection refused"):
            await within(wait)
    with pytest.raises(BrokerError, match="no tasks"):
        await within(session.flush())
    assert [task.status for task in tasks] == [Status.SENDING] * 3
    assert "connection refused" in str(await session.explain())
    doubles.broker.faults.clear()
    await eventually(lambda: not parts_of(session).context.problems.first)
    await within(session.flush())
    await within(tasks[0].accepted())
    assert len({message.message_id for message in doubles.broker.tried}) == 3
    told = [await within(anext(events)) for _ in range(len(events._queue))]
    assert [event.kind for event in told][-1] == "info"


async def test_failed_receives_fail_every_waiting_call(
    session: Session, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for an outcome gets the error; the outcome comes when the broker is back."""
    agent = Agent(doubles, parts_of(session).context)
    task = await session.submit("x.py")
    waits = [asyncio.ensure_future(wait) for wait in (task.outcome(), anext(session.results()))]
    (item,) = await agent.take()
    bring_back = take_broker_away(doubles, monkeypatch)
    for wait in waits:
        with pytest.raises(BrokerError, match=r"no results.*connection refused"):
            await within(wait)
    await agent.answer(item, value="at last")
    bring_back()
    await eventually(lambda: not parts_of(session).context.problems.first)
    assert await within(task) == "at last"


async def test_failed_fetch_of_a_result_fails_waiting_calls(session: Session, doubles: Doubles) -> None:
    """Whoever waits gets the error; the result comes when storage is back."""
    agent = Agent(doubles, parts_of(session).context)
    doubles.storage.faults["get", "results/"] = [StorageError("busy", retryable=True)] * 1000
    task = await session.submit("x.py")
    waiting = asyncio.ensure_future(task.outcome())
    (item,) = await agent.take()
    await agent.answer(item, value=await agent.store("results/x.json", b'"large"'))
    with pytest.raises(StorageError, match=r"fetched from storage.*busy"):
        await within(waiting)
    doubles.storage.faults.clear()
    await eventually(lambda: not parts_of(session).context.problems.first)
    assert await within(task) == "large"


async def test_outage_shorter_than_patience_raises_no_error(
    connect: Callable[..., Client], doubles: Doubles
) -> None:
    """It costs time, and an event."""
    async with connect(patience=3600.0) as client:
        pool = await client.ensure_pool("demo", files={"x.py": b""})
        async with pool.session("c") as session:
            events = session.events()
            doubles.broker.faults.extend([AWAY] * 3)
            task = await session.submit("x.py")
            await within(task.accepted())
            assert len(doubles.broker.tried) == 4
            assert "connection refused" in (await within(anext(events))).message


async def test_closing_while_the_broker_is_away(
    connect: Callable[..., Client], doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounded, says how many tasks were not accepted, and ends whoever waits."""
    async with connect(close_timeout=0.4) as client:
        pool = await client.ensure_pool("demo", files={"x.py": b""})
        session = await pool.session("c")
        doubles.broker.faults.extend([AWAY] * 1000)
        take_broker_away(doubles, monkeypatch)
        task = await session.submit("x.py")
        waits = [asyncio.ensure_future(wait) for wait in (task.outcome(), session.flush())]
        await eventually(lambda: doubles.broker.tried)
        with pytest.raises(BrokerError, match="1 of its tasks"):
            await within(session.aclose(), 3.0)
        for wait in waits:
            with pytest.raises(SessionClosed):
                await within(wait)
        assert session.closed
