"""What the methods of clients, sessions, tasks and streams promise: they do it, or they raise."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from batchflow.client import Client
from batchflow.errors import (
    Backpressure,
    BrokerError,
    JournalError,
    LeaseLost,
    MailboxInUse,
    QueueNotFound,
    SessionClosed,
    WrongEventLoop,
)
from batchflow.model import Result, Status
from batchflow.pool import Pool
from batchflow.session import Session
from batchflow.sessions.receiving.checkpoint_store import Journal
from batchflow.sessions.receiving.spill_file import SpillFile
from tests.support.agent import Agent, argument_of
from tests.support.services import Doubles
from tests.support.session_parts import parts_of
from tests.support.waiting import eventually, within


async def values_of(session: Session) -> dict[Any, bool]:
    """The value of each result that is still to come, and whether it is marked as repeated."""
    return {result.value[0]: result.repeated async for result in session.results()}


async def done(session: Session, agent: Agent, number: int) -> None:
    """So many tasks that have their outcomes."""
    await session.submit_many("x.py", range(number))
    await session.flush()
    for item in await agent.take(number):
        await agent.answer(item)
    await eventually(lambda: session.counts.done == number)


# ---- errors while the mailbox is opened again

PASSES = [
    LeaseLost("the lock was lost"),
    LeaseLost("the link was lost", retryable=True),
    Backpressure("throttled", retryable=True),
    BrokerError("no answer", retryable=True),
    MailboxInUse("the old lock", retryable=True),
]
ENDS = [QueueNotFound("gone"), BrokerError("no right"), MailboxInUse("taken over")]


def fail_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: BrokerError) -> list[object]:
    """Let one call of a method fail. Return a list of the calls."""
    calls: list[object] = []
    method = getattr(owner, name)

    async def failing(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise error
        return await method(*args)

    monkeypatch.setattr(owner, name, failing)
    return calls


@pytest.mark.parametrize("error", PASSES, ids=repr)
@pytest.mark.parametrize("where", ["check", "mailbox"])
async def test_session_survives_each_error_that_passes_while_it_reopens(
    pool: Pool,
    agent: Agent,
    doubles: Doubles,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    error: BrokerError,
) -> None:
    """Whether the opening itself fails, or the reading of the checkpoint after it."""
    async with pool.session("c") as session:
        await session.flush()
        owner = doubles.broker if where == "mailbox" else parts_of(session).checkpoint
        calls = fail_once(monkeypatch, owner, where, error)
        doubles.broker.advance(60)
        task = await session.submit("x.py", args=1)
        await agent.answer(*await agent.take())
        assert await within(task) == [1]
        assert calls
        assert not session.closed


@pytest.mark.parametrize("error", ENDS, ids=repr)
async def test_session_ends_with_an_error_that_does_not_pass(
    pool: Pool, agent: Agent, doubles: Doubles, monkeypatch: pytest.MonkeyPatch, error: BrokerError
) -> None:
    """Its waiters are told."""
    session = await pool.session("c")
    task = await session.submit("x.py")
    await session.flush()
    fail_once(monkeypatch, parts_of(session).checkpoint, "check", error)
    doubles.broker.advance(60)
    with pytest.raises(SessionClosed, match=str(error)):
        await within(task.outcome())
    with pytest.raises(type(error)):
        await session.aclose()


# ---- what is marked as repeated


async def kill(session: Session, doubles: Doubles, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the process had been killed: nothing is saved or completed any more, the lock runs out."""

    async def nothing(*_: object) -> None:
        raise LeaseLost("the process was killed")

    async def away(*_: object) -> None:
        return None

    mailbox = parts_of(session).receiver.mailbox
    for name in ("complete", "renew", "get_state", "set_state"):
        monkeypatch.setattr(mailbox, name, nothing)
    monkeypatch.setattr(parts_of(session).receiver, "_reopen", away)
    monkeypatch.setattr(parts_of(session).presence, "release", away)
    session.close_timeout = 0.5
    await asyncio.gather(session.aclose(), return_exceptions=True)
    doubles.broker.advance(60)


@pytest.mark.parametrize("between", [0, 1, 2])
async def test_mark_survives_holders_that_close_in_order(
    pool: Pool, agent: Agent, doubles: Doubles, monkeypatch: pytest.MonkeyPatch, between: int
) -> None:
    """It says what a holder may have shown, however many held the mailbox since."""
    first = await pool.session("c")
    await done(first, agent, 3)
    first.take()
    await kill(first, doubles, monkeypatch)
    for _ in range(between):
        await (await pool.session("c")).aclose()
    async with pool.session("c") as last:
        await last.submit("x.py", args=7)
        await agent.answer(*await agent.take())
        assert await within(values_of(last)) == {0: True, 1: True, 2: True, 7: False}


async def test_results_that_were_read_before_closing_are_not_delivered_again(
    pool: Pool, agent: Agent, doubles: Doubles
) -> None:
    """Although the mailbox was lost just before: closing opens it again, and saves."""
    session = await pool.session("c")
    await done(session, agent, 3)
    session.take()
    doubles.broker.advance(60)
    await within(session.aclose())
    async with pool.session("c") as later:
        assert await within(values_of(later)) == {}


async def test_closing_reports_a_checkpoint_that_it_could_not_save(
    pool: Pool, agent: Agent, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was read is marked when it is delivered again."""
    session = await pool.session("c")
    await done(session, agent, 2)
    session.take()
    session.close_timeout = 0.2

    async def lost(*_: object) -> None:
        raise Backpressure("throttled", retryable=True)

    with monkeypatch.context() as away:
        away.setattr(parts_of(session).receiver.mailbox, "set_state", lost)
        with pytest.raises(BrokerError, match="before its checkpoint was saved"):
            await within(session.aclose())
    async with pool.session("c") as later:
        assert await within(values_of(later)) == {0: True, 1: True}


async def test_results_that_were_not_read_before_closing_are_not_marked(pool: Pool, agent: Agent) -> None:
    """They are delivered for the first time."""
    async with pool.session("c") as session:
        await done(session, agent, 2)
    async with pool.session("c") as later:
        assert await within(values_of(later)) == {0: False, 1: False}


# ---- flush


@pytest.mark.parametrize("error", PASSES[:4], ids=repr)
async def test_flush_returns_when_the_checkpoint_is_saved(
    pool: Pool, doubles: Doubles, monkeypatch: pytest.MonkeyPatch, error: BrokerError
) -> None:
    """A failed save is made again."""
    session = await pool.session("c")
    await session.flush()
    fail_once(monkeypatch, parts_of(session).receiver.mailbox, "set_state", error)
    await session.submit("x.py")
    await within(session.flush())
    assert parts_of(session).receiver.is_saved
    await kill(session, doubles, monkeypatch)
    async with pool.session("c") as later:
        await eventually(lambda: later.counts.queued == 1)


async def test_flush_raises_when_nothing_can_be_saved(
    pool: Pool, connect: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In `session.patience` seconds; what was accepted stays so."""

    async def lost(*_: object) -> None:
        raise LeaseLost("the link was lost", retryable=True)

    async with connect(patience=0.1) as client, (await client.pool(pool.id)).session("c") as session:
        await session.flush()
        with monkeypatch.context() as away:
            away.setattr(parts_of(session).receiver.mailbox, "set_state", lost)
            task = await session.submit("x.py")
            with pytest.raises(BrokerError, match="checkpoint was not saved"):
                await within(session.flush())
            assert task.status is Status.QUEUED
        await within(session.flush())


async def test_flush_waits_for_a_save_that_is_under_way(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another call began it, and it may still fail."""
    async with pool.session("c") as session:
        await session.flush()
        go_on, mailbox = asyncio.Event(), parts_of(session).receiver.mailbox
        assert mailbox is not None
        set_state = mailbox.set_state

        async def slow(state: bytes) -> None:
            await go_on.wait()
            await set_state(state)

        monkeypatch.setattr(mailbox, "set_state", slow)
        await session.submit("x.py")
        first = asyncio.ensure_future(session.flush())
        second = asyncio.ensure_future(session.flush())
        await asyncio.sleep(0.05)
        assert not first.done()
        assert not second.done()
        go_on.set()
        await within(asyncio.gather(first, second))


# ---- closing a client


@pytest.mark.parametrize("pause", [0.0, 0.01, 0.1])
async def test_closing_a_client_sends_what_its_sessions_still_hold(
    connect: Callable[..., Client], pool: Pool, doubles: Doubles, pause: float
) -> None:
    """Also while a session opens its mailbox again, for which it needs the services."""
    client = await connect()
    session = await (await client.pool(pool.id)).session("c")
    doubles.broker.advance(60)
    await asyncio.sleep(pause)
    await session.submit_many("x.py", range(50))
    await within(client.aclose())
    assert session.counts.sending == 0
    assert session.counts.queued == 50


async def test_cancellation_is_not_replaced_by_an_error_of_the_closing(
    connect: Callable[..., Client], pool: Pool, doubles: Doubles
) -> None:
    """Ctrl-C ends the program as such; the error is logged."""
    opened = asyncio.Event()

    async def work() -> None:
        async with connect(close_timeout=0.1) as client, (await client.pool(pool.id)).session("c") as session:
            doubles.broker.faults.extend([BrokerError("down", retryable=True)] * 1000)
            await session.submit("x.py")
            opened.set()
            await asyncio.Event().wait()

    working = asyncio.ensure_future(work())
    await within(opened.wait())
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(working, 5.0)


# ---- another event loop


METHODS: dict[str, Callable[[Session, Any], Awaitable[object]]] = {
    "submit": lambda session, task: session.submit("x.py"),
    "submit_many": lambda session, task: session.submit_many("x.py", [1]),
    "run": lambda session, task: session.run("x.py"),
    "map": lambda session, task: anext(session.map("x.py", [1])),
    "map collected": lambda session, task: session.map("x.py", [1]).collect(),
    "results": lambda session, task: anext(session.results()),
    "results collected": lambda session, task: session.results().collect(),
    "progress": lambda session, task: anext(session.results().progress()),
    "events": lambda session, task: anext(session.events()),
    "flush": lambda session, task: session.flush(),
    "update_files": lambda session, task: session.update_files({}),
    "cancel_all": lambda session, task: session.cancel_all(),
    "explain": lambda session, task: session.explain(),
    "aclose": lambda session, task: session.aclose(),
    "open": lambda session, task: session.__aenter__(),
    "task": lambda session, task: task,
    "accepted": lambda session, task: task.accepted(),
    "outcome": lambda session, task: task.outcome(),
    "cancel": lambda session, task: task.cancel(),
}
POOL_METHODS: dict[str, Callable[[Client, Pool], Awaitable[object]]] = {
    "client.pool": lambda client, pool: client.pool("demo"),
    "client.ensure_pool": lambda client, pool: client.ensure_pool("demo"),
    "client.pools": lambda client, pool: anext(client.pools()),
    "client.find_pool": lambda client, pool: client.find_pool(),
    "client.delete_pool": lambda client, pool: client.delete_pool("demo"),
    "client.delete_all_pools": lambda client, pool: client.delete_all_pools(),
    "client.sweep": lambda client, pool: client.sweep(),
    "client.logs": lambda client, pool: anext(client.logs()),
    "client.aclose": lambda client, pool: client.aclose(),
    "pool.session": lambda client, pool: pool.session(),
    "pool.create_job": lambda client, pool: pool.create_job("j"),
    "pool.job": lambda client, pool: pool.job("default"),
    "pool.jobs": lambda client, pool: anext(pool.jobs()),
    "pool.delete_job": lambda client, pool: pool.delete_job("j"),
    "pool.start": lambda client, pool: pool.start(),
    "pool.stop": lambda client, pool: pool.stop(),
    "pool.repurpose": lambda client, pool: pool.repurpose({}),
    "pool.resize": lambda client, pool: pool.resize(1),
    "pool.nodes": lambda client, pool: pool.nodes(),
    "pool.heartbeats": lambda client, pool: pool.heartbeats(),
    "pool.wait_ready": lambda client, pool: pool.wait_ready(timeout=1),
    "pool.explain": lambda client, pool: pool.explain(),
    "pool.client_settings": lambda client, pool: pool.client_settings(),
    "pool.delete": lambda client, pool: pool.delete(),
}


async def in_another_loop(call: Callable[[], Awaitable[object]]) -> BaseException | None:
    """Return what a call raises in a second loop, in a thread of its own."""
    ends: list[BaseException | None] = []

    async def awaited() -> None:
        await call()

    def run() -> None:
        try:
            asyncio.run(asyncio.wait_for(awaited(), 10))
        except Exception as error:
            ends.append(error)
        else:
            ends.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    await eventually(lambda: not thread.is_alive())
    return ends[0]


async def test_each_method_names_the_wrong_event_loop(client: Client, pool: Pool, serving: Agent) -> None:
    """At once, and the own loop goes on."""
    async with pool.session("c") as session:
        task = await session.submit("x.py", args=1)
        await within(task)
        calls = {name: lambda method=method: method(session, task) for name, method in METHODS.items()}
        calls |= {name: lambda method=method: method(client, pool) for name, method in POOL_METHODS.items()}
        ends = {name: await in_another_loop(call) for name, call in calls.items()}
        assert {name: end for name, end in ends.items() if not isinstance(end, WrongEventLoop)} == {}
        assert await within(session.run("x.py", 2)) == [2]


async def test_take_is_refused_in_another_thread(pool: Pool) -> None:
    """It is no coroutine, and all the same not for other threads."""
    async with pool.session("c") as session:
        ends: list[object] = []

        def take() -> None:
            try:
                ends.append(session.take())
            except WrongEventLoop as error:
                ends.append(error)

        thread = threading.Thread(target=take)
        thread.start()
        await eventually(lambda: not thread.is_alive())
        assert isinstance(ends[0], WrongEventLoop)
        assert session.take() == []


# ---- a map whose reader is cancelled

READERS: dict[str, Callable[[Any], Awaitable[object]]] = {
    "collect": lambda stream: stream.collect(),
    "progress": lambda stream: stream.progress().collect(),
    "loop": lambda stream: _loop(stream),
    "loop with a slow body": lambda stream: _slow_loop(stream),
    "async with": lambda stream: _within_block(stream),
}


async def _loop(stream: Any) -> None:
    async for _ in stream:
        pass


async def _slow_loop(stream: Any) -> None:
    async for _ in stream:
        await asyncio.Event().wait()


async def _within_block(stream: Any) -> None:
    async with stream:
        await _loop(stream)


@pytest.mark.parametrize("reader", READERS)
async def test_cancelled_reader_of_a_map_cancels_the_rest(pool: Pool, agent: Agent, reader: str) -> None:
    """Although the exception, with all variables, and the stream are kept: a notebook does so."""
    async with pool.session("c") as session:
        stream = session.map("x.py", range(5))
        reading = asyncio.ensure_future(READERS[reader](stream))
        items = await agent.take(5)
        await agent.answer(items[0])
        await eventually(lambda: session.counts.succeeded == 1)
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError) as kept:
            await within(reading)
        cancellations = parts_of(session).cancellations
        await eventually(lambda: cancellations.written == {1, 2, 3, 4})
        assert kept.value is not None


@pytest.mark.parametrize("wait", ["timeout", "wait_for", "break"])
async def test_map_can_be_read_on_after_a_wait_that_ended(pool: Pool, agent: Agent, wait: str) -> None:
    """In the next task too, as a notebook's next cell is: nothing is cancelled, nothing lost."""

    async def first_cell() -> None:
        if wait == "timeout":
            try:
                async with asyncio.timeout(0.05):
                    await _loop(stream)
            except TimeoutError:
                return
        elif wait == "wait_for":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), 0.05)
        else:
            async for _ in stream:
                break

    async with pool.session("c") as session:
        stream = session.map("x.py", range(3))
        cell = asyncio.ensure_future(first_cell())
        items = await agent.take(3)
        if wait == "break":
            await agent.answer(items.pop(0))
        await within(cell)
        for item in items:
            await agent.answer(item)
        found: list[Result] = await within(asyncio.ensure_future(stream.collect()))
        assert len(found) == len(items)
        assert session.counts.cancelled == 0


# ---- full disks of the client


async def test_full_temporary_folder_keeps_results_in_memory(
    pool: Pool, agent: Agent, connect: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session goes on and says so once; with space again it spills."""
    write, full = SpillFile.write, [True]

    def fails(file: SpillFile, spilled: Any) -> Any:
        if full[0]:
            raise OSError(28, "No space left on device")
        return write(file, spilled)

    monkeypatch.setattr(SpillFile, "write", fails)
    async with connect(unclaimed=0) as client, (await client.pool(pool.id)).session("c") as session:
        events = session.events()
        tasks = await session.submit_many("x.py", range(4))
        items = await agent.take(4)
        for item in items[:2]:
            await agent.answer(item, value=argument_of(item))
        await eventually(lambda: session.counts.done == 2)
        full[0] = False
        for item in items[2:]:
            await agent.answer(item, value=argument_of(item))
        await eventually(lambda: session.counts.done == 4)
        assert sorted(result.value for result in session.take()) == [0, 1, 2, 3]
        told = await within(anext(events))
        assert "no temporary file can be written" in told.message
        assert not session.closed
        assert all(task.status is Status.SUCCEEDED for task in tasks)


@pytest.mark.parametrize("way", ["take", "results", "map", "task"])
async def test_full_disk_under_a_journal_delays_the_delivery(
    pool: Pool, agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A typed error, and the result stays: the same call delivers it when there is space."""
    sync = "batchflow.sessions.receiving.checkpoint_store.os.fsync"

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    asked: list[object] = []
    async with pool.session("c", journal=tmp_path / "shown") as session:
        stream = session.map("x.py", [5]) if way == "map" else session.results()
        task = None if way == "map" else await session.submit("x.py", args=5)
        reading = asyncio.ensure_future(anext(stream)) if way == "map" else None

        async def ask() -> Any:
            if reading is not None and not asked:
                asked.append(reading)
                return await reading
            if way == "take":
                return session.take()[0]
            return await (task if way == "task" and task is not None else anext(stream))

        (item,) = await agent.take()
        with monkeypatch.context() as disk:
            disk.setattr(sync, full)
            await agent.answer(item)
            await eventually(lambda: session.counts.done == 1)
            with pytest.raises(JournalError, match=r"No space left.*free space"):
                await within(ask())
            assert not session.closed
        found = await within(ask())
        assert getattr(found, "value", found) == [5]
    assert len((tmp_path / "shown").read_text().splitlines()) == 1


async def test_full_disk_under_a_journal_ends_no_session(
    pool: Pool, agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not through outcomes that no call reads, nor through those that the session gives itself."""

    def full(_journal: Journal, _uid: str) -> None:
        raise JournalError("full")

    monkeypatch.setattr(Journal, "record", full)
    async with pool.session("c", journal=tmp_path / "shown") as session:
        async with session.map("x.py", range(2)) as stream:
            reading = asyncio.ensure_future(anext(stream))
            items = await agent.take(2)
            reading.cancel()
        for item in items:
            await agent.answer(item)
        running = asyncio.ensure_future(session.run("x.py"))
        (item,) = await agent.take()
        running.cancel()
        await agent.answer(item)
        await eventually(lambda: session.counts.done == 3)
        assert not session.closed


async def test_checkpoint_is_saved_before_what_it_covers_is_completed(
    pool: Pool, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when another call's save of it is still under way, and fails."""
    async with pool.session("c") as session:
        await done(session, agent, 1)
        mailbox, go_on = parts_of(session).receiver.mailbox, asyncio.Event()
        assert mailbox is not None
        completed: list[object] = []
        set_state, complete = mailbox.set_state, mailbox.complete
        saves: list[bytes] = []

        async def fails_once(state: bytes) -> None:
            saves.append(state)
            if len(saves) == 1:
                await go_on.wait()
                raise Backpressure("throttled", retryable=True)
            await set_state(state)

        async def noted(delivery: Any) -> None:
            completed.append(len(saves))
            await complete(delivery)

        monkeypatch.setattr(mailbox, "set_state", fails_once)
        monkeypatch.setattr(mailbox, "complete", noted)
        session.take()
        saving = asyncio.ensure_future(session.flush())
        await eventually(lambda: len(saves) == 1)
        settling = asyncio.ensure_future(parts_of(session).receiver.flush_settlements(1.0))
        await asyncio.sleep(0.02)
        assert completed == []
        go_on.set()
        await within(asyncio.gather(saving, settling))
        await eventually(lambda: completed == [2])
