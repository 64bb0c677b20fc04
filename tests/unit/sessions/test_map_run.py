"""`map`: lazy, bounded, ordered or not; left early it takes back what it had submitted."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from batchflow.errors import ArgumentNotSerializable, ConfigurationError, SessionClosed
from batchflow.model import Counts
from batchflow.pool import Pool
from batchflow.protocol.documents import Cancellation
from batchflow.protocol.layout import cancellation_blob
from batchflow.session import Session
from batchflow.sessions.records.tracker import Entry
from tests.support.agent import Agent, argument_of, failure_of
from tests.support.services import Doubles, until_empty
from tests.support.session_parts import parts_of
from tests.support.waiting import eventually, within


async def values(stream: Any) -> list[Any]:
    async with asyncio.timeout(20):
        return [result.value async for result in stream]


async def cancelled_numbers(session: Session) -> list[int]:
    """What the session's cancellation document holds."""
    blob = await parts_of(session).context.runtime.ctl.get(cancellation_blob(session.job_name, session.name))
    intervals = Cancellation.decode(blob.data).intervals.get(session.incarnation, ())
    return [number for first, last in intervals for number in range(first, last + 1)]


async def test_results_of_all_inputs(session: Session, serving: Agent) -> None:
    """Each once, with its place among the inputs; lists are the arguments, anything else the one argument."""
    inputs = [1, "a b", [1, 2], {"k": 1}, None]
    async with asyncio.timeout(20):
        results = [result async for result in session.map("x.py", inputs)]
    by_index = {result.index: result.value for result in results}
    assert by_index == {0: [1], 1: ["a b"], 2: [1, 2], 3: [{"k": 1}], 4: [None]}


async def test_as_they_come_or_in_order(session: Session, agent: Agent) -> None:
    """Unordered gives what is done, ordered waits for its turn."""
    for ordered in (False, True):
        reading = asyncio.ensure_future(values(session.map("x.py", range(4), ordered=ordered)))
        for item in reversed(await agent.take(4)):
            await agent.answer(item, value=argument_of(item))
            await eventually(lambda: session.counts.sending == 0)
        assert await within(reading) == ([0, 1, 2, 3] if ordered else [3, 2, 1, 0])


async def test_end_of_burst_is_set_until_the_next_submit(session: Session, serving: Agent) -> None:
    """Its last packs are cut finer: a session tells that no more is coming, as far as it knows."""
    tracker = parts_of(session).context.tracker
    for _ in range(2):
        assert not tracker.end_of_burst
        async with asyncio.timeout(20):
            await session.map("x.py", range(3)).collect()
        assert tracker.end_of_burst
        await session.submit("x.py", 1)
        assert not tracker.end_of_burst
    await session.submit_many("x.py", range(3))
    assert tracker.end_of_burst


async def test_nothing_begins_before_it_is_read(session: Session, agent: Agent) -> None:
    """Not an input is taken, not a task submitted."""
    taken: list[int] = []

    def inputs() -> Iterator[int]:
        for n in range(3):
            taken.append(n)
            yield n

    stream = session.map("x.py", inputs())
    await asyncio.sleep(0)
    assert (taken, session.counts) == ([], Counts())
    await stream.aclose()
    assert await values(stream) == []
    assert taken == []


async def test_no_more_than_the_window_is_under_way_or_unread(session: Session, agent: Agent) -> None:
    """An endless input is no problem, ordered or not."""
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            yield taken
            taken += 1

    for ordered in (False, True):
        taken = 0
        async with session.map("x.py", endless(), window=5, ordered=ordered) as stream:
            reading = asyncio.ensure_future(anext(stream))
            for item in await agent.take(5):
                await agent.answer(item, value=argument_of(item))
            assert (await within(reading)).value == 0
            await agent.answer(*await agent.take(1))
            await eventually(lambda: session.counts.queued == session.counts.sending == 0)
            assert taken == 6
            assert (await within(anext(stream))).value == 1


async def test_inputs_may_be_async(session: Session, serving: Agent) -> None:
    """An async generator is read as it gives."""

    async def slowly() -> AsyncIterator[int]:
        for number in range(5):
            await asyncio.sleep(0)
            yield number

    assert sorted(await values(session.map("x.py", slowly()))) == [[0], [1], [2], [3], [4]]


async def test_no_inputs_no_results(session: Session) -> None:
    """It ends at once."""
    assert await values(session.map("x.py", [])) == []


async def test_many_inputs(session: Session, serving: Agent) -> None:
    """More than go into one message or one turn of the loop."""
    assert await values(session.map("x.py", range(1000), ordered=True, window=100)) == [
        [n] for n in range(1000)
    ]


async def test_failures_are_results(session: Session, agent: Agent) -> None:
    """The stream goes on after them."""
    reading = asyncio.ensure_future(values(session.map("x.py", range(2), ordered=True)))
    first, second = await agent.take(2)
    await agent.post([failure_of(first)])
    await agent.answer(second, value="fine")
    assert await within(reading) == [None, "fine"]


class Inputs(list[int]):
    """Can be watched."""


async def test_map_frees_inputs_and_read_results(session: Session, serving: Agent) -> None:
    """The session goes on and the stream is kept, and neither holds inputs or outcomes."""
    inputs = Inputs(range(20))
    watched = weakref.ref(inputs)
    stream = session.map("x.py", inputs)
    assert len(await stream.collect()) == 20
    del inputs
    gc.collect()
    assert watched() is None
    entries = [each for each in gc.get_objects() if isinstance(each, Entry)]
    assert [each.index for each in entries if each.client == session.name] == []
    await stream.aclose()


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_inputs_that_raise(session: Session, serving: Agent, kind: str) -> None:
    """The results of those before come first, then the error; the session goes on."""

    def broken() -> Iterator[int]:
        yield from range(3)
        raise LookupError("no more")

    async def broken_async() -> AsyncIterator[int]:
        for number in broken():
            yield number

    stream = session.map("x.py", broken() if kind == "sync" else broken_async(), ordered=True)
    for number in range(3):
        assert (await within(anext(stream))).value == [number]
    with pytest.raises(LookupError, match="no more"):
        await within(anext(stream))
    with pytest.raises(StopAsyncIteration):
        await within(anext(stream))
    assert await within(session.run("x.py", args=1)) == [1]


async def test_an_input_that_cannot_travel(session: Session, serving: Agent) -> None:
    """Is told after the results of those before."""
    stream = session.map("x.py", [1, object(), 3], ordered=True)
    assert (await within(anext(stream))).value == [1]
    with pytest.raises(ArgumentNotSerializable, match=r"x.py: inputs\[1\]: args\[0\] is of type object"):
        await within(anext(stream))


@pytest.mark.parametrize("options", [{"window": 0}, {"window": -1}, {"timeout": 0}, {"memory_limit": -1}])
async def test_options_that_can_never_be_sent_are_refused_at_once(session: Session, options: Any) -> None:
    """Where `map` is called, not where it is read."""
    with pytest.raises(ConfigurationError):
        session.map("x.py", [1], **options)
    with pytest.raises(TypeError):
        session.map("x.py", [1], no_such_option=1)  # type: ignore[call-overload]


async def test_map_results_do_not_come_to_other_readers(session: Session, agent: Agent) -> None:
    """`results()` and `take()` do not see them."""
    reading = asyncio.ensure_future(values(session.map("x.py", range(3))))
    plain = await session.submit("x.py", args="plain")
    for item in await agent.take(4):
        await agent.answer(item, value=argument_of(item))
    assert await within(plain) == "plain"
    await within(reading)
    assert session.take() == []
    assert [result async for result in session.results()] == []


async def test_leaving_it_cancels_what_it_had_submitted(
    session: Session, agent: Agent, doubles: Doubles
) -> None:
    """What is queued by the document, what is not sent at once; nothing else is cancelled."""
    other = await session.submit("x.py", args="other")
    async with session.map("x.py", range(10**9), window=500) as stream:
        reading = asyncio.ensure_future(anext(stream))
        items = await agent.take(100)
        await agent.answer(items[1], value="one")
        assert (await within(reading)).value == "one"
    counts = session.counts
    covered = await cancelled_numbers(session)
    assert 0 not in covered
    assert len(covered) + counts.cancelled == counts.submitted - 2
    await agent.answer(items[0], value="still")
    assert await within(other) == "still"


async def test_the_task_that_is_just_submitted_is_cancelled_too(session: Session, agent: Agent) -> None:
    """Wherever the pump is when the reader leaves, no task of it is forgotten.

    It used to be when the 64th task had let the event loop have a turn.
    """
    for window in (63, 64, 65, 128):
        stream = session.map("x.py", range(10**9), window=window)
        with pytest.raises(TimeoutError):
            await within(anext(stream), 0.001)
        await stream.aclose()
        covered = await cancelled_numbers(session)
        assert session.counts.cancelled + len(covered) == session.counts.submitted


async def test_a_dropped_stream_cancels_what_it_had_submitted(session: Session, agent: Agent) -> None:
    """`break` without closing: the garbage collector's notice is enough."""

    async def first() -> Any:
        async for result in session.map("x.py", range(10)):
            return result.value
        return None

    reading = asyncio.ensure_future(first())
    items = await agent.take(10)
    await agent.answer(items[3], value=3)
    assert await within(reading) == 3
    gc.collect()
    await eventually(lambda: parts_of(session).cancellations.written)
    assert await cancelled_numbers(session) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


async def test_leaving_it_and_the_session_at_once_still_cancels(pool: Pool, agent: Agent) -> None:
    """The closing waits for the document to be written."""
    async with pool.session("c") as session:
        stream = session.map("x.py", range(5))
        reading = asyncio.ensure_future(anext(stream))
        await agent.take(5)
        reading.cancel()
        await asyncio.sleep(0)
        del stream, reading
        gc.collect()
    assert await cancelled_numbers(session) == [0, 1, 2, 3, 4]


async def test_leaving_it_in_a_cancelled_scope_still_cancels(session: Session, agent: Agent) -> None:
    """A web framework cancels its reader at every await, also at that of the closing: the tasks still end."""
    with anyio.CancelScope() as scope:
        async with session.map("x.py", range(5)) as stream:
            reading = asyncio.ensure_future(anext(stream))
            await agent.take(5)
            reading.cancel()
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    await session.aclose()
    assert await cancelled_numbers(session) == [0, 1, 2, 3, 4]


async def test_results_of_a_closed_map_are_completed(session: Session, agent: Agent) -> None:
    """Results of a left map, unread or late, do not stay in the mailbox, ordered or not."""
    for ordered in (False, True):
        async with session.map("x.py", range(6), ordered=ordered) as stream:
            reading = asyncio.ensure_future(anext(stream))
            items = await agent.take(6)
            await agent.answer(*items[0:1], value="read")
            await within(reading)
            await agent.answer(*items[2:4], value="unread")
            await eventually(lambda: session.counts.queued == 3)
        await agent.answer(items[1], items[4], items[5], value="late")
        await until_empty(session)
        await eventually(lambda: session.counts.queued == 0)


async def test_a_session_that_ends_does_not_look_like_the_end_of_the_inputs(pool: Pool, agent: Agent) -> None:
    """`SessionClosed`, though everything that was submitted had been read."""
    gate = asyncio.Event()

    async def inputs() -> AsyncIterator[int]:
        yield 1
        await gate.wait()
        yield 2

    async with pool.session("c") as session:
        stream = session.map("x.py", inputs())
        reading = asyncio.ensure_future(anext(stream))
        await agent.answer(*await agent.take())
        await within(reading)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
    with pytest.raises(SessionClosed):
        await within(waiting)
    with pytest.raises(SessionClosed):
        await within(anext(stream))


async def test_a_cancelled_wait_loses_nothing(session: Session, agent: Agent) -> None:
    """The stream can be read on; nothing was cancelled by it."""
    stream = session.map("x.py", range(3), ordered=True)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await within(anext(stream), 0.01)
    for item in await agent.take(3):
        await agent.answer(item, value=argument_of(item))
    assert await values(stream) == [0, 1, 2]


async def test_break_and_come_back(session: Session, serving: Agent) -> None:
    """A stream that somebody still holds goes on where it was left."""
    stream = session.map("x.py", range(6), ordered=True)
    seen = []
    async for result in stream:
        seen.append(result.value)
        if len(seen) == 2:
            break
    assert seen + await values(stream) == [[n] for n in range(6)]


@pytest.mark.parametrize(("window", "sent"), [(10_000, 150), (40, 40)])
async def test_a_map_fills_its_message_while_another_session_keeps_the_slots_busy(
    pool: Pool, agent: Agent, window: int, sent: int
) -> None:
    """With a window below that, it sends what may be under way."""
    async with pool.session("busy") as busy, pool.session("c") as session:
        context = parts_of(session).context
        await eventually(lambda: context.policy.slots > 0)
        context.policy.seen("x.py", 0.0001)
        context.policy.durations.overall = 0.0001
        await busy.submit_many("x.py", range(4000))
        await busy.flush()
        reading = asyncio.ensure_future(values(session.map("x.py", range(150), window=window)))
        await eventually(lambda: context.tracker.queued == sent)
        items = await agent.take_message()
        while items[0].client != "c":
            items = await agent.take_message()
        assert len(items) == sent
        reading.cancel()
