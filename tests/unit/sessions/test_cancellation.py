"""Cancelling: before the send, after it, unconfirmed; and what is written down of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from batchflow.errors import BrokerError, NoAgents, SessionClosed, StorageError, TaskCancelled
from batchflow.model import Counts, Status
from batchflow.pool import Pool
from batchflow.protocol import wire
from batchflow.protocol.documents import Cancellation
from batchflow.protocol.layout import cancellation_blob
from batchflow.session import Session
from batchflow.sessions.cancellation import intervals
from tests.support.agent import Agent, result_of
from tests.support.services import Doubles, until_empty
from tests.support.session_parts import parts_of
from tests.support.waiting import eventually, within


async def document(session: Session) -> Cancellation:
    blob = await parts_of(session).context.runtime.ctl.get(cancellation_blob(session.job_name, session.name))
    return Cancellation.decode(blob.data)


async def covered(session: Session, most: int = 30) -> list[int]:
    found = await document(session)
    return [number for number in range(most) if found.covers(session.incarnation, number)]


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchflow.sessions.cancellation._CONFIRMATION", 0.01)


async def test_unsent_task_is_cancelled_at_once(session: Session, agent: Agent, doubles: Doubles) -> None:
    """It never leaves; its outcome is there at once, without any document."""
    doubles.broker.gate.clear()
    first = await session.submit("x.py", args="first")
    await eventually(lambda: doubles.broker.tried)
    second = await session.submit("x.py", args="second")
    third = await session.submit("x.py", args="third")
    await within(second.cancel())
    assert second.status is Status.CANCELLED
    with pytest.raises(TaskCancelled, match="before it was sent"):
        await within(second)
    with pytest.raises(TaskCancelled):
        await within(second.accepted())
    assert await covered(session) == []
    doubles.broker.gate.set()
    assert [item.params for item in await agent.take(2)] == [["first"], ["third"]]
    await within(first.accepted())
    await within(third.accepted())


async def test_sent_task_is_cancelled_by_its_agent(session: Session, agent: Agent) -> None:
    """`cancel` returns when the document is written; the agent's confirmation is the outcome."""
    tasks = await session.submit_many("x.py", range(3))
    items = await agent.take(3)
    await within(tasks[1].cancel())
    assert await covered(session) == [1]
    assert tasks[1].status is Status.QUEUED
    confirmation = result_of(items[1], status=Status.CANCELLED, error="killed", kind="TaskCancelled")
    await agent.post([confirmation])
    with pytest.raises(TaskCancelled, match="killed"):
        await within(tasks[1])
    assert session.counts == Counts(queued=2, cancelled=1)


async def test_a_task_that_ends_by_itself_before_keeps_its_outcome(session: Session, agent: Agent) -> None:
    """The first outcome wins."""
    task = await session.submit("x.py")
    (item,) = await agent.take()
    await within(task.cancel())
    await agent.answer(item, value="done already")
    assert await within(task) == "done already"
    await within(task.cancel())
    assert task.status is Status.SUCCEEDED


@pytest.mark.usefixtures("_impatient")
async def test_unconfirmed_cancellation_is_resolved_by_the_session(session: Session, agent: Agent) -> None:
    """The client gives the outcome itself; a later one of an agent is dropped."""
    task = await session.submit("x.py")
    (item,) = await agent.take()
    await within(task.cancel())
    with pytest.raises(TaskCancelled, match="no agent confirmed"):
        await within(task)
    await agent.answer(item, value="too late")
    await until_empty(session)
    assert task.status is Status.CANCELLED


@pytest.mark.usefixtures("_impatient")
async def test_unconfirmed_cancellation_stays_in_the_document(
    session: Session, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task may still lie in the queue: an agent that starts in an hour must not run it.

    It used to be pruned by the next cancellation, because the client had given it an outcome. Of those that
    were confirmed only the last ones stay; none used to, so that a task ran when its agent had died between
    its result and its message's completion.
    """
    monkeypatch.setattr("batchflow.sessions.cancellation.KEPT", 2)
    tasks = await session.submit_many("x.py", range(4))
    items = await agent.take(4)
    await within(tasks[0].cancel())
    await within(tasks[1].cancel())
    await eventually(lambda: session.counts.cancelled == 2)
    await within(tasks[2].cancel())
    assert await covered(session) == [0, 1, 2]
    for item in items[:3]:
        await agent.post([result_of(item, status=Status.CANCELLED, error="c", kind="TaskCancelled")])
    await eventually(lambda: session.counts.cancelled == 3)
    assert len(session.take()) == 3
    await until_empty(session, but=1)
    await within(tasks[3].cancel())
    assert await covered(session) == [1, 2, 3]


async def test_cancelling_many_writes_once(session: Session, agent: Agent, doubles: Doubles) -> None:
    """As intervals."""
    await session.submit_many("x.py", range(20))
    items = await agent.take(20)
    await agent.answer(items[10])
    await eventually(lambda: session.counts.succeeded == 1)
    doubles.storage.calls.clear()
    await within(session.cancel_all())
    written = [call for call in doubles.storage.calls if call[0] == "put" and call[1].startswith("cancel/")]
    assert len(written) == 1
    assert (await document(session)).intervals == {session.incarnation: ((0, 9), (11, 19))}


async def test_concurrent_cancellations_are_all_written(session: Session, agent: Agent) -> None:
    """Every one of them returns with its number written."""
    tasks = await session.submit_many("x.py", range(10))
    await agent.take(10)
    await within(asyncio.gather(*(task.cancel() for task in tasks)))
    assert await covered(session) == list(range(10))


async def test_failed_write_of_a_cancellation_is_raised(
    session: Session, agent: Agent, doubles: Doubles
) -> None:
    """And can be tried again."""
    task = await session.submit("x.py")
    await agent.take()
    doubles.storage.faults["put", "cancel/"] = [StorageError("read-only")]
    with pytest.raises(StorageError, match="read-only"):
        await within(task.cancel())
    await within(task.cancel())
    assert await covered(session) == [0]


async def test_cancelling_an_awaiting_coroutine_does_not_cancel_the_task(
    session: Session, agent: Agent
) -> None:
    """It runs on, and its result can still be had."""
    task = await session.submit("x.py")
    (item,) = await agent.take()
    with pytest.raises(TimeoutError):
        await within(task.outcome(), 0.01)
    assert await covered(session) == []
    await agent.answer(item, value="here")
    assert await within(task) == "here"


async def test_cancelling_run_cancels_the_task(session: Session, agent: Agent) -> None:
    """`asyncio.timeout` around it reaches the node."""
    with pytest.raises(TimeoutError):
        await within(session.run("x.py"), 0.01)
    await eventually(lambda: parts_of(session).cancellations.written)
    assert await covered(session) == [0]


async def test_run_that_raises_no_agents_cancels_the_task(
    session: Session, agent: Agent, doubles: Doubles
) -> None:
    """The task would run later, unseen, and a caller who tries again would run it twice."""
    running = asyncio.ensure_future(session.run("x.py"))
    await eventually(lambda: session.counts.queued)
    doubles.compute.known.clear()
    await agent.beat(state="exiting")
    with pytest.raises(NoAgents):
        await within(running)
    await eventually(lambda: parts_of(session).cancellations.written)
    assert await covered(session) == [0]


async def test_cancelling_run_at_the_end_of_the_session_cancels_the_task(pool: Pool, agent: Agent) -> None:
    """The closing waits for the document.

    It used to be cut off: the commonest way to end a `run`, a timeout that leaves the session's block, let
    the task run on.
    """

    async def run_and_leave() -> None:
        async with pool.session("c") as session:
            sessions.append(session)
            await within(session.run("x.py"), 0.01)

    sessions: list[Session] = []
    with pytest.raises(TimeoutError):
        await run_and_leave()
    assert await covered(sessions[0]) == [0]


async def test_cancelling_run_in_its_first_turn_forgets_no_task(session: Session, doubles: Doubles) -> None:
    """Also where the 64th submit lets the event loop have a turn: then there is no task yet."""
    doubles.broker.gate.clear()
    await session.submit_many("x.py", range(63))
    running = asyncio.ensure_future(session.run("x.py"))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (session.counts.submitted, session.counts.cancelled) == (63, 0)
    doubles.broker.gate.set()


async def test_a_task_that_is_done_can_be_cancelled_after_the_session(pool: Pool, serving: Agent) -> None:
    """Idempotent: there is nothing to cancel. One that has no outcome cannot be cancelled any more."""
    async with pool.session("c") as session:
        done = await session.submit("x.py")
        await within(done)
        serving_no_more = await session.submit("x.py")
        await within(serving_no_more)
    await within(done.cancel())


async def test_cancelling_after_the_session_is_refused(pool: Pool, agent: Agent) -> None:
    """Nothing could confirm it."""
    async with pool.session("c") as session:
        task = await session.submit("x.py")
    with pytest.raises(SessionClosed):
        await within(task.cancel())


async def test_what_an_earlier_holder_cancelled_stays_cancelled(pool: Pool, agent: Agent) -> None:
    """A session that finds its mailbox again adds to the document."""
    async with pool.session("c") as first:
        tasks = await first.submit_many("x.py", range(3))
        await within(first.flush())
        await within(tasks[1].cancel())
    async with pool.session("c") as second:
        task = await second.submit("x.py")
        await within(task.accepted())
        await within(task.cancel())
        assert await covered(first) == [1]
        assert await covered(second) == [0]


async def test_document_is_deleted_when_no_task_can_be_queued(
    pool: Pool, serving: Agent, doubles: Doubles
) -> None:
    """A session that has all its outcomes leaves nothing behind."""
    async with pool.session("tidy") as session:
        assert doubles.storage.names("cancel/default/tidy")
        await within(session.run("x.py"))
    assert doubles.storage.names("cancel/") == []
    assert doubles.storage.names("sessions/") == []


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [([], []), ([3], [(3, 3)]), ([1, 2, 3], [(1, 3)]), ([0, 2, 3, 5], [(0, 0), (2, 3), (5, 5)])],
)
def test_intervals(numbers: list[int], expected: list[Any]) -> None:
    """Both ends included."""
    assert intervals(numbers) == expected


@pytest.fixture
async def _broken_broker(doubles: Doubles) -> AsyncIterator[None]:
    doubles.broker.faults.extend([BrokerError("down", retryable=True)] * 1000)
    yield
    doubles.broker.faults.clear()


@pytest.mark.usefixtures("_broken_broker", "_impatient")
async def test_a_task_that_is_just_being_sent_can_be_cancelled(session: Session, doubles: Doubles) -> None:
    """The broker does not answer: its outcome comes all the same, and the closing need not wait for it."""
    task = await session.submit("x.py")
    await eventually(lambda: doubles.broker.tried)
    await within(task.cancel())
    with pytest.raises(TaskCancelled):
        await within(task)
    assert await covered(session) == [0]
    with pytest.raises(TaskCancelled):
        await within(task.accepted())
    await within(session.aclose(), 1.0)
    assert wire.split_uid(task._entry.uid) == (session.incarnation, 0)
