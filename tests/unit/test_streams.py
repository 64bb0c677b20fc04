"""Reading a session: who gets which result, and that leaving, coming back and cancelling lose nothing."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

from batchflow.client import Client
from batchflow.errors import BrokerError, SessionClosed
from batchflow.model import Counts, Result, Status
from batchflow.pool import Pool
from batchflow.ports.broker import Delivery
from batchflow.protocol.wire import EventItem, ResultItem
from batchflow.session import Session
from batchflow.support.waiting import ChangeNotifier
from tests.support.agent import Agent, argument_of, failure_of
from tests.support.services import Doubles, until_empty
from tests.support.session_parts import parts_of
from tests.support.waiting import eventually, within


async def read(stream: Any, most: int = 10**6) -> list[Any]:
    """The values of what a stream still gives."""
    values: list[Any] = []
    async with asyncio.timeout(20):
        async for result in stream:
            values.append(result.value)
            if len(values) == most:
                break
    return values


async def submit_and_answer(session: Session, agent: Agent, number: int) -> None:
    """So many tasks whose values are their numbers, all done."""
    await session.submit_many("x.py", range(number))
    for item in await agent.take(number):
        await agent.answer(item, value=argument_of(item))
    await eventually(lambda: session.counts.done == session.counts.submitted)


# ---- results()


async def test_results_come_once_and_end(session: Session, agent: Agent) -> None:
    """Each result once, in the order of arrival; then the stream ends, and the next one has nothing."""
    await submit_and_answer(session, agent, 5)
    assert await read(session.results()) == [0, 1, 2, 3, 4]
    assert await read(session.results()) == []
    await until_empty(session)


async def test_results_wait_for_all_that_was_submitted(session: Session, agent: Agent) -> None:
    """Also for what is submitted while they are read."""
    await session.submit_many("x.py", range(2))
    reading = asyncio.ensure_future(read(session.results()))
    first, second = await agent.take(2)
    await agent.answer(first, value="first")
    await eventually(lambda: session.counts.done == 1)
    await session.submit("x.py")
    await agent.answer(second, value="second")
    (third,) = await agent.take()
    assert not reading.done()
    await agent.answer(third, value="third")
    assert await within(reading) == ["first", "second", "third"]


async def test_a_claimed_result_does_not_come(session: Session, agent: Agent) -> None:
    """Claimed by awaiting, before or after it came; the others do."""
    tasks = await session.submit_many("x.py", range(4))
    awaiting = asyncio.ensure_future(tasks[0].outcome())
    await asyncio.sleep(0)
    for item in await agent.take(4):
        await agent.answer(item, value=argument_of(item))
    await eventually(lambda: session.counts.done == 4)
    assert await within(tasks[2]) == 2
    assert await read(session.results()) == [1, 3]
    assert (await within(awaiting)).value == 0


async def test_task_holder_reads_an_outcome_that_a_stream_yielded(session: Session, agent: Agent) -> None:
    """`await task` works at any time, and repeatedly."""
    tasks = await session.submit_many("x.py", range(2))
    for item in await agent.take(2):
        await agent.answer(item, value=argument_of(item))
    assert await read(session.results()) == [0, 1]
    for _ in range(2):
        assert [await within(task) for task in tasks] == [0, 1]


async def test_run_is_a_claim(session: Session, serving: Agent) -> None:
    """What `run` returned does not come again."""
    assert await within(session.run("x.py", args=[1])) == [1]
    assert await read(session.results()) == []


async def test_failures_come_as_results(session: Session, agent: Agent) -> None:
    """A stream does not raise for a task's failure."""
    await session.submit("x.py")
    (item,) = await agent.take()
    await agent.post([failure_of(item, "broken")])
    result = await within(anext(session.results()))
    assert (result.ok, result.error) == (False, "broken")


async def test_break_and_come_back(session: Session, agent: Agent) -> None:
    """The same stream, or another one, goes on where the loop was left."""
    await submit_and_answer(session, agent, 6)
    stream = session.results()
    assert await read(stream, most=2) == [0, 1]
    assert await read(stream, most=2) == [2, 3]
    assert await read(session.results()) == [4, 5]


async def test_a_cancelled_wait_loses_nothing(session: Session, agent: Agent) -> None:
    """Neither the result that comes a moment later nor one that came at the same moment."""
    stream = session.results()
    await session.submit_many("x.py", range(2))
    first, second = await agent.take(2)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await within(anext(stream), 0.01)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    await agent.answer(first, value=1)
    waiting.cancel()
    await agent.answer(second, value=2)
    seen = [] if await cancelled(waiting) else [waiting.result().value]
    assert seen + await read(stream) == [1, 2]


async def cancelled(task: asyncio.Future[Any]) -> bool:
    await asyncio.wait([task], timeout=20)
    return task.cancelled()


async def test_two_readers_share(session: Session, agent: Agent) -> None:
    """Each result comes to one of them."""
    readers = [asyncio.ensure_future(read(session.results())) for _ in range(2)]
    await session.submit_many("x.py", range(20))
    readers += [asyncio.ensure_future(read(session.results())) for _ in range(2)]
    for item in await agent.take(20):
        await agent.answer(item, value=argument_of(item))
    shares = await within(asyncio.gather(*readers))
    assert sorted(value for share in shares for value in share) == list(range(20))


async def test_a_closed_stream_ends_and_leaves_the_rest(session: Session, agent: Agent) -> None:
    """What it left comes to the next one."""
    await submit_and_answer(session, agent, 3)
    async with session.results() as stream:
        assert (await anext(stream)).value == 0
    assert await read(stream) == []
    assert await read(session.results()) == [1, 2]


async def test_a_followed_stream_ends_with_the_session(pool: Pool, agent: Agent) -> None:
    """It waits for tasks that are not submitted yet, and gives what came until the end."""
    async with pool.session("c") as session:
        reading = asyncio.ensure_future(read(session.results(follow=True)))
        await submit_and_answer(session, agent, 2)
        await submit_and_answer(session, agent, 2)
        await asyncio.sleep(0)
        assert not reading.done()
    assert await within(reading) == [0, 1, 0, 1]


async def test_session_end_fails_waiting_readers(pool: Pool, agent: Agent) -> None:
    """Not an early end that looks like a full one."""
    async with pool.session("c") as session:
        await session.submit_many("x.py", range(2))
        (item, _) = await agent.take(2)
        await agent.answer(item, value="one")
        stream = session.results()
        assert (await within(anext(stream))).value == "one"
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
    with pytest.raises(SessionClosed, match="1 tasks have no outcome"):
        await within(waiting)
    with pytest.raises(SessionClosed):
        await within(anext(session.results()))


async def test_what_came_is_readable_after_the_session(pool: Pool, agent: Agent) -> None:
    """Results in memory outlive it."""
    async with pool.session("c") as session:
        await submit_and_answer(session, agent, 3)
    assert await read(session.results()) == [0, 1, 2]


# ---- take()


async def test_take_gives_what_has_come(session: Session, agent: Agent) -> None:
    """Without waiting, at most so many, each once."""
    assert session.take() == []
    await submit_and_answer(session, agent, 5)
    assert [result.value for result in session.take(2)] == [0, 1]
    assert session.take(0) == []
    assert [result.value for result in session.take()] == [2, 3, 4]
    assert session.take() == []


async def test_counts_grow_without_a_reader(session: Session, agent: Agent) -> None:
    """As the original's `num_results_returned`."""
    await session.submit_many("x.py", range(3))
    items = await agent.take(3)
    await agent.post([failure_of(items[0])])
    await agent.answer(items[1])
    await eventually(lambda: session.counts.done == 2)
    assert session.counts == Counts(queued=1, succeeded=1, failed=1)
    assert session.counts.submitted == 3


# ---- completion and spilling


async def test_message_is_completed_when_its_last_outcome_was_delivered(
    session: Session, agent: Agent, doubles: Doubles
) -> None:
    """Until then another client could still get it, should this one die."""
    await session.submit_many("x.py", range(3))
    await agent.answer(*await agent.take(3), value="v")
    await eventually(lambda: session.counts.done == 3)
    (queue,) = parts_of(session).context.runtime.manifest.results_queues
    for _ in range(2):
        assert len(session.take(1)) == 1
        assert (await doubles.broker.figures(queue.entity)).active == 1
    session.take(1)
    await until_empty(session)


async def test_unread_results_past_the_bound_go_to_disk(
    pool: Pool, agent: Agent, connect: Callable[..., Client]
) -> None:
    """Receiving goes on, messages are completed, and what was spilled reads as it was."""
    async with connect(unclaimed=5) as client:
        session = await (await client.pool("demo")).session()
        tasks = await session.submit_many("x.py", range(30))
        for item in await agent.take(30):
            await agent.answer(item, value={"n": argument_of(item), "text": "ä" * 100}, stdout="out")
        await eventually(lambda: session.counts.done == 30)
        await until_empty(session, but=6)
        assert (await within(tasks[7]))["n"] == 7
        assert (await within(tasks[7]))["n"] == 7
        results = session.take()
        assert [result.value["n"] for result in results] == [n for n in range(30) if n != 7]
        assert {result.stdout for result in results} == {"out"}
        await until_empty(session)


async def test_spilled_outcomes_are_freed_from_memory(
    pool: Pool, agent: Agent, connect: Callable[..., Client]
) -> None:
    """Not the outcome, though the message that it came by is not completed before it was read."""
    async with connect(unclaimed=0) as client:
        session = await (await client.pool("demo")).session("c")
        await session.submit("x.py")
        (item,) = await agent.take()
        await agent.answer(item, value=["a value that is seen nowhere else"])
        await eventually(lambda: parts_of(session).receiver.state.spilled)
        gc.collect()
        kept = [each for each in gc.get_objects() if isinstance(each, ResultItem)]
        assert item.uid not in {each.uid for each in kept}
        assert parts_of(session).receiver.state.held == 1
        assert [result.value for result in session.take()] == [["a value that is seen nowhere else"]]
        await until_empty(session)


async def test_unread_results_are_bounded_by_their_size_too(
    pool: Pool, agent: Agent, doubles: Doubles, connect: Callable[..., Client]
) -> None:
    """Few results may be large, with their message or by reference: past so many bytes they go to disk."""
    async with connect(unclaimed_bytes=100_000) as client:
        session = await (await client.pool("demo")).session()
        await session.submit_many("x.py", range(20))
        for item in await agent.take(20):
            value: object = "v" * 10_000
            if argument_of(item) >= 10:
                name = f"results/{argument_of(item)}.json"
                value = await agent.store(name, b'"%s"' % (b"r" * 60_000))
            await agent.answer(item, value=value)
        await eventually(lambda: session.counts.done == 20)
        assert parts_of(session).receiver.state.held_bytes <= 100_000
        await eventually(lambda: len(doubles.storage.names("results/")) <= 1)
        results = session.take()
        assert sorted(len(result.value) for result in results) == [10_000] * 10 + [60_000] * 10
        await until_empty(session)
        assert parts_of(session).receiver.state.held_bytes == 0


async def test_spilled_results_outlive_the_session(
    pool: Pool, agent: Agent, connect: Callable[..., Client]
) -> None:
    """Whoever holds the task, or a stream, reads them afterwards."""
    async with connect(unclaimed=0) as client, (await client.pool("demo")).session("c") as session:
        tasks = await session.submit_many("x.py", range(3))
        for item in await agent.take(3):
            await agent.answer(item, value=argument_of(item))
        await eventually(lambda: session.counts.done == 3)
    assert await within(tasks[0]) == 0
    assert await read(session.results()) == [1, 2]


async def test_read_outcomes_are_not_held(session: Session, agent: Agent) -> None:
    """Memory is for what is unread, even behind a result that nobody ever asks for."""
    stuck = await session.submit("x.py")
    parts_of(session).context.tracker.claim(stuck._entry)
    (item,) = await agent.take()
    await agent.answer(item)
    for _ in range(30):
        await session.submit_many("x.py", range(100))
        taken = await agent.take(100)
        await agent.answer(*taken, value=1)
        await eventually(lambda: session.counts.queued == session.counts.sending == 0)
        assert len(session.take()) == 100
    assert len(parts_of(session).receiver.state.fresh) < 2500


async def test_a_message_that_was_read_is_not_held(session: Session, agent: Agent) -> None:
    """Not even the last one, though the next may be long in coming."""
    await session.submit("x.py")
    (item,) = await agent.take()
    await agent.answer(item, value="a value that is seen nowhere else")
    assert await read(session.results()) == ["a value that is seen nowhere else"]
    await until_empty(session)
    gc.collect()
    held = [each for each in gc.get_objects() if isinstance(each, Delivery)]
    assert [each for each in held if b"seen nowhere else" in each.body] == []


# ---- events


async def test_events_tell_what_tasks_say(session: Session, agent: Agent) -> None:
    """Output lines as they come, from when one asks; their messages are completed."""
    task = await session.submit("x.py", task_id="label", stream_output=True)
    (item,) = await agent.take()
    assert item.stream_output
    await agent.post([EventItem(item.uid, "label", "stdout", "too early", 1.0)], "default/client_1")
    await until_empty(session)
    events = session.events()
    said = [EventItem(item.uid, "label", "stdout", f"line {n}", 2.0, {"n": n}) for n in range(2)]
    await agent.post(said, "default/client_1")
    heard = [await within(anext(events)) for _ in said]
    assert [(event.kind, event.message, event.task_id, event.data) for event in heard] == [
        ("stdout", "line 0", "label", {"n": 0}),
        ("stdout", "line 1", "label", {"n": 1}),
    ]
    await agent.answer(item)
    await within(task)
    await until_empty(session)


async def test_events_end_with_the_session_or_their_closing(pool: Pool, agent: Agent) -> None:
    """Whoever waits is not left waiting."""
    async with pool.session("c") as session:
        closed, left = session.events(), session.events()
        waiting = [asyncio.ensure_future(_next(stream)) for stream in (closed, left)]
        await asyncio.sleep(0)
        await closed.aclose()
        assert await within(waiting[0]) is None
        assert not waiting[1].done()
    assert await within(waiting[1]) is None


async def _next(stream: Any) -> Any:
    return await anext(stream, None)


async def test_unread_events_are_bounded_and_counted(session: Session, doubles: Doubles) -> None:
    """The oldest are dropped, and how many."""
    events = session.events()
    for number in range(10_005):
        parts_of(session).context.notices.inform(str(number))
    assert events.dropped == 5
    assert (await anext(events)).message == "5"


async def test_a_dropped_event_stream_costs_nothing(session: Session) -> None:
    """Nobody tells it anything any more."""
    session.events()
    gc.collect()
    assert len(parts_of(session).context.notices) == 0


# ---- what they wait on


async def test_notifier_wakes_current_waiters_only() -> None:
    """Not those who come later."""
    pulse = ChangeNotifier()
    waiting = [asyncio.ensure_future(pulse.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    pulse.notify()
    await within(asyncio.gather(*waiting))
    late = asyncio.ensure_future(pulse.wait())
    await asyncio.sleep(0)
    assert not late.done()
    pulse.notify()
    await within(late)


async def test_waits_that_are_given_up_do_not_pile_up() -> None:
    """Whoever polls with a short patience costs nothing in the long run."""
    pulse = ChangeNotifier()
    for _ in range(10):
        with pytest.raises(TimeoutError):
            await within(pulse.wait(), 0.001)
    assert pulse._waiters == []


async def test_results_go_on_while_nothing_can_be_sent(
    session: Session, agent: Agent, doubles: Doubles
) -> None:
    """The two directions do not wait for each other."""
    first = await session.submit("x.py")
    (item,) = await agent.take()
    doubles.broker.faults.extend([BrokerError("down", retryable=True)] * 100)
    await session.submit("x.py")
    await agent.answer(item, value="here")
    assert await within(first) == "here"
    doubles.broker.faults.clear()


def test_a_result_can_be_told_by_its_place() -> None:
    """A frozen value with defaults for what is not there."""
    result = Result("1", "j", "c", "x.py", Status.SUCCEEDED, 3)
    assert result.ok
    assert result.unwrap() is None
