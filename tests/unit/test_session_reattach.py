"""A session that is opened again by its name, and the journal."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from batchflow.client import Client
from batchflow.errors import (
    ConfigurationError,
    JournalError,
    MailboxInUse,
    SessionClosed,
)
from batchflow.model import Counts, Result, Status
from batchflow.pool import Pool
from batchflow.ports.broker import Mailbox
from batchflow.session import Session
from batchflow.sessions.receiving.checkpoint_store import CheckpointStore, Journal
from batchflow.sessions.records.checkpoint import Checkpoint
from tests.support.agent import Agent, result_of
from tests.support.crash import die
from tests.support.services import Doubles, until_empty
from tests.support.session_parts import parts_of
from tests.support.waiting import eventually, within


async def read(session: Session, number: int) -> list[Result]:
    stream = session.results(follow=True)
    return [await within(anext(stream)) for _ in range(number)]


async def test_results_end_when_all_owed_outcomes_came(pool: Pool, agent: Agent) -> None:
    """What was submitted and not read is waited for, and with the last of it the stream ends."""
    async with pool.session("c") as first:
        await first.submit_many("x.py", range(5))
        items = await agent.take(5)
        await agent.answer(items[0])
        await agent.answer(items[1])
        await read(first, 2)
    async with pool.session("c") as second:
        await eventually(lambda: second.counts == Counts(queued=3))
        await agent.answer(*items[2:])
        results = [result async for result in second.results()]
        assert [result.value for result in results] == [[2], [3], [4]]
        assert not any(result.repeated for result in results)
        assert second.counts == Counts(succeeded=3)
    async with pool.session("c") as third:
        assert [result async for result in third.results()] == []


async def test_closing_waits_until_the_checkpoint_was_read(
    pool: Pool, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that is closed at once, without `flush`, leaves a checkpoint by which the next one waits.

    It used to close before it had read the checkpoint, and what is not read cannot be saved.
    """
    may_load = asyncio.Event()
    load = CheckpointStore.load

    async def late(keeper: CheckpointStore, mailbox: Mailbox, lost_by: Callable[[str], float]) -> None:
        await may_load.wait()
        await load(keeper, mailbox, lost_by)

    monkeypatch.setattr(CheckpointStore, "load", late)
    first = await pool.session("c")
    await first.submit_many("x.py", range(2))
    closing = asyncio.ensure_future(first.aclose())
    items = await agent.take(2)
    may_load.set()
    await within(closing)
    async with pool.session("c") as second:
        await eventually(lambda: second.counts == Counts(queued=2))
        await agent.answer(*items)
        assert [result.value async for result in second.results()] == [[0], [1]]


async def test_own_and_earlier_tasks_share_a_stream(pool: Pool, agent: Agent) -> None:
    """The numbers of two incarnations may be the same; the outcomes are told apart."""
    async with pool.session("c") as first:
        await first.submit("x.py", args="old")
        (old,) = await agent.take(1)
    async with pool.session("c") as second:
        await second.submit("x.py", args="new")
        (new,) = await agent.take(1)
        await agent.answer(new)
        await agent.answer(old)
        values = [result.value async for result in second.results()]
        assert sorted(values) == [["new"], ["old"]]


async def test_after_a_crash_nothing_is_lost(
    pool: Pool, agent: Agent, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was shown in the last moment is shown again and says so; the rest comes once."""
    first = await pool.session("c")
    await first.submit_many("x.py", range(4))
    await first.flush()
    items = await agent.take(4)
    await agent.answer(items[0])
    await read(first, 1)
    await parts_of(first).receiver.flush_settlements(1.0)
    await agent.answer(items[1])
    await read(first, 1)
    await die(first, doubles, monkeypatch)
    async with pool.session("c") as second:
        await agent.answer(items[2])
        await agent.answer(items[3])
        results = [result async for result in second.results()]
    assert {result.value[0]: result.repeated for result in results} == {1: True, 2: False, 3: False}


async def test_spilled_outcomes_survive_a_crash(
    pool: Pool,
    agent: Agent,
    doubles: Doubles,
    connect: Callable[..., Client],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file dies with the process, so the mailbox keeps what nobody has read, also when it was lost once.

    Spilling used to count as reading: the messages were completed, and entered into the checkpoint.
    """
    async with connect(unclaimed=1) as client:
        first = await (await client.pool(pool.id)).session("c")
        await first.submit_many("x.py", range(6))
        await first.flush()
        items = await agent.take(6)
        for item in items[:5]:
            await agent.answer(item)
        await eventually(lambda: first.counts.succeeded == 5)
        assert [result.value for result in first.take(1)] == [[0]]
        doubles.broker.advance(60)
        await agent.answer(items[5])
        await eventually(lambda: first.counts.succeeded == 6)
        await parts_of(first).receiver.flush_settlements(1.0)
        await die(first, doubles, monkeypatch)
        async with pool.session("c") as second:
            assert [result.value async for result in second.results()] == [[n] for n in range(1, 6)]


async def test_duplicate_of_an_unread_outcome_consumes_nothing(
    pool: Pool, agent: Agent, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that ran twice has two results; the second one's arrival says nothing of the first one's fate.

    It used to be entered into the checkpoint as read, so that a crash lost the outcome.
    """
    first = await pool.session("c")
    await first.submit("x.py")
    await first.flush()
    (item,) = await agent.take()
    await agent.answer(item, value="once")
    await agent.answer(item, value="once more")
    await until_empty(first, but=1)
    await parts_of(first).receiver.flush_settlements(1.0)
    await die(first, doubles, monkeypatch)
    async with pool.session("c") as second:
        assert [result.value async for result in second.results()] == ["once"]


@pytest.mark.parametrize("mail_came", [False, True])
async def test_unread_cancellation_survives_a_crash(
    pool: Pool, agent: Agent, doubles: Doubles, monkeypatch: pytest.MonkeyPatch, mail_came: bool
) -> None:
    """What the session told itself, for no agent did, dies with it; the agent's word comes to the next one.

    It used to be entered into the checkpoint at once, so that the next holder was shown nothing.
    """
    monkeypatch.setattr("batchflow.sessions.cancellation._CONFIRMATION", 0.0)
    first = await pool.session("c")
    task = await first.submit("x.py")
    await first.flush()
    (item,) = await agent.take()
    await within(task.cancel())
    await eventually(lambda: first.counts.cancelled == 1)
    confirmation = result_of(item, status=Status.CANCELLED, error="stopped", kind="TaskCancelled")
    if mail_came:
        await agent.post([confirmation])
        await eventually(lambda: not parts_of(first).receiver.state.expecting_message)
    await parts_of(first).receiver.flush_settlements(1.0)
    await die(first, doubles, monkeypatch)
    async with pool.session("c") as second:
        if not mail_came:
            await agent.post([confirmation])
        assert [result.status async for result in second.results()] == [Status.CANCELLED]


@pytest.mark.parametrize("confirms", [True, False])
async def test_outcome_of_a_cancelled_run_is_not_owed_to_the_next_holder(
    pool: Pool, agent: Agent, monkeypatch: pytest.MonkeyPatch, confirms: bool
) -> None:
    """No call reads it any more, so it counts as delivered when it comes."""
    if not confirms:
        monkeypatch.setattr("batchflow.sessions.cancellation._CONFIRMATION", 0.0)
    async with pool.session("c") as first:
        running = asyncio.ensure_future(first.run("x.py"))
        (item,) = await agent.take()
        running.cancel()
        await asyncio.wait([running])
        if confirms:
            await agent.answer(item, status=Status.CANCELLED, error="stopped", kind="TaskCancelled")
        await eventually(lambda: first.counts.cancelled == 1)
    async with pool.session("c") as second:
        assert [result async for result in second.results()] == []


async def test_outcome_that_comes_as_its_run_is_cancelled_counts_as_delivered(
    pool: Pool, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pool.session("c") as first:
        running = asyncio.ensure_future(first.run("x.py"))
        announce = parts_of(first).outcomes.announce
        monkeypatch.setattr(
            parts_of(first).outcomes, "announce", lambda entry: running.cancel() and announce(entry)
        )
        await agent.answer(*await agent.take())
        await within(asyncio.wait([running]))
        assert running.cancelled()
        assert first.counts == Counts(succeeded=1)
    async with pool.session("c") as second:
        assert [result async for result in second.results()] == []


async def test_saved_outcome_is_not_delivered_again_from_an_uncompleted_message(
    pool: Pool, agent: Agent, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that was saved counts more than a message that comes again."""
    first = await pool.session("c")
    await first.submit_many("x.py", range(2))
    items = await agent.take(2)
    await agent.answer(items[0])
    await read(first, 1)
    await parts_of(first).receiver.until_saved()
    await die(first, doubles, monkeypatch)
    async with pool.session("c") as second:
        await agent.answer(items[1])
        assert [result.value async for result in second.results()] == [[1]]


async def test_journal_prevents_a_second_delivery(
    pool: Pool, agent: Agent, doubles: Doubles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On this host, however late the checkpoint was saved."""
    journal = tmp_path / "shown"
    first = await pool.session("c", journal=journal)
    await first.submit_many("x.py", range(3))
    await first.flush()
    items = await agent.take(3)
    await agent.answer(items[0])
    await agent.answer(items[1])
    shown = await read(first, 2)
    await die(first, doubles, monkeypatch)
    async with pool.session("c", journal=journal) as second:
        await agent.answer(items[2])
        shown += [result async for result in second.results()]
    assert [result.value for result in shown] == [[0], [1], [2]]


def test_journal_is_synced_before_delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written, synced, then known: in that order, once for each outcome."""
    path, synced = tmp_path / "shown", list[bytes]()
    monkeypatch.setattr("os.fsync", lambda _: synced.append(path.read_bytes()))
    journal = Journal(path)
    for uid in ("a:1", "a:2", "a:1"):
        journal.record(uid)
    assert synced == [b"a:1", b"a:1\na:2"]
    journal.close()
    journal.record("a:3")
    assert path.read_bytes() == b"a:1\na:2\n"


def test_unsynced_journal_line_counts_as_undelivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed within the sync, where a reader spends most of its time: the outcome used to be lost."""
    path, left = tmp_path / "shown", tmp_path / "left"
    journal = Journal(path)
    journal.record("a:1")
    monkeypatch.setattr("os.fsync", lambda _: left.write_bytes(path.read_bytes()))
    journal.record("a:2")
    journal.close()
    again = Journal(left)
    assert ("a:1" in again, "a:2" in again) == (True, False)
    again.close()


def test_failed_journal_write_leaves_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was not shown, and the next line is whole."""
    path = tmp_path / "shown"
    journal = Journal(path)
    journal.record("a:1")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as broken:
        broken.setattr("os.fsync", full)
        with pytest.raises(JournalError, match="no space"):
            journal.record("a:2")
    assert "a:2" not in journal
    journal.record("a:3")
    journal.close()
    assert path.read_bytes() == b"a:1\na:3\n"


def test_unfinished_journal_line_is_removed(tmp_path: Path) -> None:
    """What it begins with was not shown: `a:12`, torn, used to be taken for `a:1`, which was then lost."""
    path = tmp_path / "shown"
    path.write_bytes(b"a:0\na:1")
    journal = Journal(path)
    assert "a:0" in journal
    assert "a:1" not in journal
    journal.record("a:12")
    journal.close()
    again = Journal(path)
    assert "a:12" in again
    assert "a:1" not in again
    again.close()


async def test_a_journal_that_cannot_be_used_is_refused(pool: Pool, tmp_path: Path) -> None:
    """The error names the file; a session without a name cannot have one."""
    with pytest.raises(ConfigurationError, match="nowhere"):
        pool.session("c", journal=tmp_path / "nowhere" / "shown")
    with pytest.raises(ConfigurationError, match="name"):
        pool.session(journal=tmp_path / "shown")
    for content in (b"\xff\n", b"no uid\n"):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(ConfigurationError, match="other"):
            pool.session("c", journal=tmp_path / "other")


async def test_replaced_holder_ends_as_taken_over(
    pool: Pool, connect: Callable[..., Client], agent: Agent, doubles: Doubles
) -> None:
    """A paused client that comes back after another one opened and closed its session ends as taken over."""
    first = await pool.session("c")
    (mailbox,) = [parts_of(first).receiver.mailbox]
    assert mailbox is not None
    checkpoint = Checkpoint.decode(await within(mailbox.get_state()))
    store = parts_of(first).checkpoint
    assert store is not None
    await eventually(lambda: store.loaded)
    checkpoint = Checkpoint.decode(await mailbox.get_state())
    checkpoint.open("another")
    await mailbox.set_state(checkpoint.encode())
    waiting = await first.submit("x.py")
    doubles.broker.advance(60)
    with pytest.raises(SessionClosed, match="taken over"):
        await within(waiting.outcome())
    with pytest.raises(MailboxInUse):
        await first.aclose()


async def test_checkpoint_of_another_holder_is_not_overwritten(
    pool: Pool, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A paused holder saves nothing until it knows that nobody had the mailbox meanwhile.

    It used to save as soon as it had the lock again, so that what its successor had read was shown again.
    """
    session = await pool.session("c")
    keeper = parts_of(session).checkpoint
    assert keeper is not None
    await eventually(lambda: keeper.loaded)
    checking, go_on = asyncio.Event(), asyncio.Event()
    check = keeper.check

    async def slow(mailbox: Mailbox) -> None:
        checking.set()
        await go_on.wait()
        await check(mailbox)

    monkeypatch.setattr(keeper, "check", slow)
    doubles.broker.advance(60)
    await within(checking.wait())
    assert not await parts_of(session).receiver.flush_settlements(1.0)
    go_on.set()
    await eventually(lambda: parts_of(session).receiver.held)
    assert await parts_of(session).receiver.flush_settlements(1.0)
    await session.aclose()


async def test_undecodable_state_is_reported_and_replaced(pool: Pool, agent: Agent, doubles: Doubles) -> None:
    """Somebody else's bytes in the mailbox do not keep anybody from using it."""
    queue = pool.runtime.manifest.results_queues[0]
    mailbox = await doubles.broker.mailbox(queue, "default/c")
    await mailbox.set_state(b"not a checkpoint")
    await mailbox.aclose()
    async with pool.session("c") as session:
        task = await session.submit("x.py", args=1)
        await agent.answer(*await agent.take(1))
        assert await within(task) == [1]
