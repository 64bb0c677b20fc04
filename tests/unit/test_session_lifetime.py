"""The life of a session: opening, closing, losing its mailbox, and what is told when nobody works."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest

from batchflow.client import Client
from batchflow.errors import (
    BatchflowError,
    BrokerError,
    ConfigurationError,
    JobClosed,
    JobNotFound,
    MailboxInUse,
    NoAgents,
    PoolError,
    SessionClosed,
    StorageError,
    SubmitFailed,
)
from batchflow.model import Counts
from batchflow.pool import Pool
from batchflow.protocol import wire
from batchflow.protocol.documents import Cancellation, Presence, Running
from batchflow.protocol.layout import cancellation_blob, session_blob
from batchflow.session import Session
from tests.support.agent import Agent, argument_of
from tests.support.services import Doubles, until_empty
from tests.support.session_parts import parts_of
from tests.support.waiting import eventually, within

# ---- opening and closing


async def test_opened_and_closed_in_different_tasks(pool: Pool, serving: Agent) -> None:
    """As in two cells of a notebook."""

    async def cell(work: Callable[[], object]) -> object:
        return await asyncio.create_task(work())  # type: ignore[arg-type]

    session = pool.session("c")
    await cell(session.__aenter__)
    assert await cell(lambda: within(session.run("x.py", args=1))) == [1]
    await cell(session.aclose)
    assert session.closed


@pytest.fixture
async def yielded(pool: Pool) -> AsyncIterator[Session]:
    async with pool.session("c") as session:
        yield session


async def test_opened_and_closed_by_a_fixture(yielded: Session, serving: Agent) -> None:
    """Whose halves run in different tasks."""
    assert await within(yielded.run("x.py", args=1)) == [1]


async def test_unopened_session_refuses_calls(pool: Pool) -> None:
    """It says what is missing."""
    session = pool.session("c")
    with pytest.raises(SessionClosed, match="not opened"):
        await session.submit("x.py")
    await session.aclose()


async def test_closing_resolves_everything_that_waits(pool: Pool, agent: Agent) -> None:
    """Tasks, acceptance, streams, `run`; and what is called afterwards says the same."""
    session = await pool.session("c")
    task = await session.submit("x.py")
    await agent.take()
    waiting = [
        asyncio.ensure_future(work)
        for work in (
            task,
            task.outcome(),
            session.run("x.py"),
            anext(session.results()),
            anext(session.results(follow=True), "ended"),
            anext(session.map("x.py", [1])),
            anext(session.events(), "ended"),
        )
    ]
    await within(session.flush())
    await agent.take(2)
    await within(session.aclose())
    ends = await within(asyncio.gather(*waiting, return_exceptions=True))
    assert [type(end) if isinstance(end, Exception) else end for end in ends] == [
        SessionClosed, SessionClosed, SessionClosed, SessionClosed, "ended", SessionClosed, "ended",
    ]  # fmt: skip
    for call in (session.submit("x.py"), task.outcome(), session.run("x.py"), session.update_files({})):
        with pytest.raises(SessionClosed, match="closed"):
            await within(call)
    await within(session.flush())
    await within(task.accepted())
    await within(session.aclose())


async def test_closing_flushes(pool: Pool, agent: Agent) -> None:
    """What was submitted is sent before the session is gone."""
    async with pool.session("c") as session:
        await session.submit_many("x.py", range(500))
    assert session.counts.queued == 500
    assert len(await agent.take(500)) == 500


async def test_closing_reports_what_was_not_accepted(pool: Pool, doubles: Doubles) -> None:
    """In bounded time, with how many; whoever waits for one of them is told, too."""
    session = await pool.session("c")
    session.close_timeout = 0.2
    doubles.broker.faults.extend([BrokerError("down", retryable=True)] * 1000)
    tasks = await session.submit_many("x.py", range(3))
    accepted = asyncio.ensure_future(tasks[0].accepted())
    flush = asyncio.ensure_future(session.flush())
    with pytest.raises(BrokerError, match="3 of its tasks"):
        await within(session.aclose(), 2.0)
    for waiting in (accepted, flush):
        with pytest.raises(SessionClosed):
            await within(waiting)
    with pytest.raises(SessionClosed):
        await within(session.flush())
    assert session.counts == Counts(sending=3)


async def test_closing_is_bounded_when_a_service_hangs(pool: Pool, agent: Agent, doubles: Doubles) -> None:
    """A broker and a storage that do not answer cannot hold it."""
    session = await pool.session("c")
    session.close_timeout = 0.2
    doubles.broker.gate.clear()
    for verb in ("get", "put", "delete"):
        doubles.storage.gates[verb, ""] = asyncio.Event()
    await session.submit("x.py")
    with pytest.raises(BatchflowError):
        await within(session.aclose(), 2.0)
    assert session.closed
    doubles.storage.gates.clear()
    doubles.broker.gate.set()


async def test_delivered_messages_are_completed_before_the_end(pool: Pool, agent: Agent) -> None:
    """The next holder of the mailbox does not see it again; what nobody had read it does."""
    async with pool.session("c") as first:
        tasks = await first.submit_many("x.py", range(60), task_id="label", tag={"k": 1})
        for item in await agent.take(60):
            await agent.answer(item, value=argument_of(item))
        await eventually(lambda: first.counts.succeeded == 60)
        for task in tasks[:50]:
            await within(task)
    async with pool.session("c") as second:
        stream = second.results(follow=True)
        again = [await within(anext(stream)) for _ in range(10)]
        assert [result.value for result in again] == list(range(50, 60))
        assert {result.task_id for result in again} == {"label"}
        assert again[0].tag == {"k": 1}
        await until_empty(second)
        assert second.counts == Counts(succeeded=10)


async def test_large_arguments_of_the_last_task_are_deleted(
    pool: Pool, serving: Agent, doubles: Doubles
) -> None:
    """Although the session closes the moment that its outcome is there."""
    async with pool.session("c") as session:
        await within(session.run("x.py", args=["x" * 200_000]))
    assert doubles.storage.names("args/") == []


async def test_opening_a_session_of_a_closed_job_is_refused(pool: Pool) -> None:
    """And leaves nothing behind: the mailbox is free, no task runs on."""
    job = await pool.create_job("closed")
    await job.close()
    with pytest.raises(JobClosed):
        await job.session("c")
    assert pool.runtime.open_sessions == []


async def test_a_failed_opening_leaves_no_task_behind(pool: Pool, doubles: Doubles) -> None:
    """Not the one that starts the agents either."""
    before = asyncio.all_tasks()
    doubles.storage.faults["put", "cancel/"] = [StorageError("read-only")]
    with pytest.raises(StorageError, match="read-only"):
        await pool.session("c")
    assert asyncio.all_tasks() == before
    async with pool.session("c"):
        pass


async def test_no_event_loop_noise_when_a_session_fails_by_itself(pool: Pool, doubles: Doubles) -> None:
    """The queue is deleted under it: who waits is told why, and closing tells it again."""
    session = await pool.session("c")
    task = await session.submit("x.py")
    waiting = asyncio.ensure_future(task.outcome())
    await within(session.flush())
    await doubles.broker.delete_queue(pool.runtime.manifest.results_queues[0].entity)
    with pytest.raises(SessionClosed, match="results"):
        await within(waiting)
    with pytest.raises(BrokerError, match="results"):
        await within(session.aclose())
    with pytest.raises(SessionClosed, match="results"):
        await session.submit("x.py")


# ---- files


async def test_a_task_keeps_the_bundle_that_it_was_submitted_with(session: Session, agent: Agent) -> None:
    """`update_files` is for tasks submitted from then on."""
    await session.submit("x.py")
    await session.update_files({"x.py": b"new"})
    await session.submit("x.py")
    first, second = await agent.take(2)
    assert first.bundle == parts_of(session).context.runtime.manifest.bundle != second.bundle
    assert (await parts_of(session).context.runtime.ctl.get(f"bundles/{second.bundle}.json")).data


async def test_files_of_the_sessions_own(pool: Pool, agent: Agent) -> None:
    """Instead of the pool's."""
    async with pool.session("c", files={"y.py": b"y"}) as session:
        await session.submit("y.py")
        assert (await agent.take())[0].bundle != pool.runtime.manifest.bundle
    with pytest.raises(ConfigurationError, match="no such file"):
        await pool.session("c", files=["nowhere.py"])


# ---- the mailbox


async def test_a_mailbox_in_use_names_its_holder(pool: Pool, session: Session, doubles: Doubles) -> None:
    """At once. The refused one takes nothing from the holder: the next is refused in the same words."""
    await eventually(lambda: doubles.storage.names("sessions/"))
    for _ in range(2):
        with pytest.raises(MailboxInUse, match=r"default/client_1.*process"):
            await within(pool.session("client_1"))
        assert doubles.storage.names("sessions/") == [session_blob("default", "client_1")]
        assert doubles.storage.names("cancel/") == [cancellation_blob("default", "client_1")]
    async with pool.session("client_1", job="other"), pool.session("client_2"):
        pass


async def test_lock_of_a_dead_client_is_waited_for(pool: Pool, session: Session, doubles: Doubles) -> None:
    """Its last sign of life is old, its lock runs out."""
    old = Presence("a machine that is gone", "dead", 1.0, 5.0)
    presence = session_blob("default", "c")
    await pool.runtime.ctl.put(presence, old.encode())
    broker = doubles.broker
    broker.advance(20)
    lock = await broker.mailbox(pool.runtime.manifest.results_queues[0], "default/c")
    opening = asyncio.ensure_future(pool.session("c"))
    await eventually(lambda: ("get", presence) in doubles.storage.calls)
    assert not opening.done()
    broker.advance(60)
    opened = await within(opening)
    assert not opened.closed
    await opened.aclose()
    await lock.aclose()


async def test_wait_for_a_silent_holders_lock_is_bounded(
    pool: Pool, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody renews the lock and tells nobody who: that is said."""
    monkeypatch.setattr("batchflow.sessions.receiving.receiver._LOCK_GRACE", -1000.0)
    async with await doubles.broker.mailbox(pool.runtime.manifest.results_queues[0], "default/c"):
        with pytest.raises(MailboxInUse, match="no sign of life"):
            await within(pool.session("c"))


async def test_a_lost_mailbox_is_opened_again(session: Session, agent: Agent, doubles: Doubles) -> None:
    """Results that come meanwhile and afterwards are there, and it was told."""
    events = session.events()
    task = await session.submit("x.py")
    (item,) = await agent.take()
    doubles.broker.advance(60)
    await agent.answer(item, value="after")
    assert await within(task) == "after"
    assert "lost" in (await within(anext(events))).message
    await until_empty(session)


async def lose_mailbox(session: Session, doubles: Doubles) -> None:
    """Return when it was lost and opened again."""
    lost = parts_of(session).receiver.mailbox
    doubles.broker.advance(60)
    await eventually(lambda: parts_of(session).receiver.mailbox not in (None, lost))


async def test_unread_results_survive_the_loss_of_the_mailbox(
    pool: Pool, agent: Agent, doubles: Doubles
) -> None:
    """They come again, are shown once, and are completed when they were read, not before.

    They used to be taken for duplicates and completed: had the client died then, nobody would ever have seen
    them.
    """
    async with pool.session("c") as session:
        await session.submit_many("x.py", range(3))
        items = await agent.take(3)
        reference = await agent.store("results/2.json", b'"large"')
        await agent.answer(items[0], value="read")
        await agent.answer(items[1], value="unread")
        await agent.answer(items[2], value=reference)
        await eventually(lambda: session.counts.done == 3)
        assert session.take(1)[0].value == "read"
        await until_empty(session, but=2)
        await lose_mailbox(session, doubles)
        await eventually(
            lambda: (
                parts_of(session).receiver.state.held == 2
                and not parts_of(session).receiver.state.undelivered
            )
        )
        await until_empty(session, but=2)
        assert doubles.storage.names("results/")
        assert {result.value for result in session.take()} == {"unread", "large"}
        await until_empty(session)
        await eventually(lambda: not doubles.storage.names("results/"))
        assert session.take() == []


async def test_results_of_an_earlier_holder_are_delivered_once(
    pool: Pool, agent: Agent, doubles: Doubles
) -> None:
    """Though it comes again after a loss, or twice from two agents."""
    async with pool.session("c") as first:
        await first.submit_many("x.py", range(2))
        items = await agent.take(2)
    await agent.answer(items[0], value="one")
    await agent.answer(items[0], value="one again")
    await agent.answer(items[1], value="two")
    async with pool.session("c") as second:
        stream = second.results(follow=True)
        assert (await within(anext(stream))).value == "one"
        await eventually(lambda: len(parts_of(second).context.tracker.unclaimed) == 1)
        await lose_mailbox(second, doubles)
        await eventually(
            lambda: (
                parts_of(second).receiver.state.held == 1 and not parts_of(second).receiver.state.undelivered
            )
        )
        await agent.answer(items[0], value="one more")
        assert (await within(anext(stream))).value == "two"
        await until_empty(second)
        assert second.take() == []


async def test_mailbox_taken_over_by_a_living_client_ends_the_session(
    pool: Pool, agent: Agent, doubles: Doubles
) -> None:
    """The session ends and says who has it, instead of waiting in silence."""
    session = await pool.session("c")
    task = await session.submit("x.py")
    waiting = asyncio.ensure_future(task.outcome())
    await agent.take()
    broker = doubles.broker
    broker.clock.ahead += 60
    thief = await broker.mailbox(pool.runtime.manifest.results_queues[0], "default/c")
    presence = Presence("another machine", "thief", broker.clock() + 1000, 5.0)
    doubles.storage.faults["put", "sessions/"] = [StorageError("not now")] * 1000
    await doubles.storage.write("sessions/default/c.json", presence.encode(), pool.runtime.manifest.ctl)
    broker.tick()
    with pytest.raises(SessionClosed, match="taken over by another machine"):
        await within(waiting)
    with pytest.raises(MailboxInUse):
        await within(session.aclose())
    await thief.aclose()


async def test_paused_process_reopens_the_mailbox_before_it_delivers(session: Session, agent: Agent) -> None:
    """Another client may have the mailbox by then. It is opened again first, and the results come there."""
    events = session.events()
    mailbox = parts_of(session).receiver.mailbox
    task = await session.submit("x.py")
    (item,) = await agent.take()
    parts_of(session).receiver.ours_until = 0.0
    await agent.answer(item, value="once")
    assert await within(task) == "once"
    assert parts_of(session).receiver.mailbox is not mailbox
    assert "was not renewed in time" in (await within(anext(events))).message
    await until_empty(session)


# ---- agents


async def test_a_session_starts_the_agents(session: Session, doubles: Doubles) -> None:
    """One for each node."""
    await eventually(lambda: sum(map(len, doubles.compute.jobs.values())) == 2)


async def test_missing_agents_fail_every_waiting_call(client: Client, doubles: Doubles, agent: Agent) -> None:
    """They cannot be started and none lives: not a silent wait. When one lives, it has gone."""
    pool = await client.ensure_pool("empty")
    agent = Agent(doubles, pool)
    doubles.compute.fault = PoolError("the quota is used up")
    async with pool.session("c") as session:
        await eventually(lambda: parts_of(session).context.problems.first)
        task = await session.submit("x.py")
        await within(task.accepted())
        for wait in (task.outcome(), anext(session.results()), anext(session.map("x.py", [1]))):
            with pytest.raises(NoAgents, match="quota"):
                await within(wait)
        assert "quota" in str(await session.explain())
        await agent.beat()
        await eventually(lambda: parts_of(session).context.problems.first is None)
        items = await agent.take(1)
        waiting = asyncio.ensure_future(task.outcome())
        await agent.answer(items[0], value="at last")
        assert (await within(waiting)).value == "at last"


async def test_deleted_batch_pool_fails_every_waiting_call(
    session: Session, agent: Agent, doubles: Doubles
) -> None:
    """Somebody deleted the machines under a session: an error that names the pool, in the time of a look."""
    task = await session.submit("x.py")
    waiting = asyncio.ensure_future(task.outcome())
    doubles.compute.known.clear()
    await agent.beat(state="exiting")
    with pytest.raises(NoAgents, match="no pool demo"):
        await within(waiting)


async def test_agents_whose_batch_job_was_deleted_are_started_anew(
    session: Session, agent: Agent, doubles: Doubles
) -> None:
    """In a job of the same name, while tasks wait."""
    await eventually(lambda: any(doubles.compute.jobs.values()))
    doubles.compute.jobs.clear()
    await agent.beat(state="exiting")
    task = await session.submit("x.py")
    await eventually(lambda: any(doubles.compute.jobs.values()))
    await agent.beat()
    await agent.answer(*await agent.take(), value=1)
    assert await within(task) == 1


async def test_a_client_without_rights_on_batch_is_content_with_agents_that_live(
    pool: Pool, serving: Agent, doubles: Doubles
) -> None:
    """It cannot start any, and need not."""
    doubles.compute.fault = PoolError("forbidden")
    async with pool.session("c") as session:
        assert await within(session.run("x.py", args=1)) == [1]
        assert parts_of(session).context.problems.first is None


async def test_agents_that_cannot_be_made_do_not_end_the_session(
    client: Client, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their archive cannot be built here: whoever waits is told that, and agents may come from elsewhere.

    It used to end the session.
    """

    async def prepare(*_: object) -> None:
        raise ConfigurationError("the agent's archive cannot be made: no pip")

    monkeypatch.setattr("batchflow.pools.agent_launch.prepare", prepare)
    pool = await client.ensure_pool("bare")
    agent = Agent(doubles, pool)
    async with pool.session("c") as session:
        await eventually(lambda: parts_of(session).context.problems.first)
        task = await session.submit("x.py")
        with pytest.raises(NoAgents, match="no pip"):
            await within(task.outcome())
        await agent.beat()
        await eventually(lambda: parts_of(session).context.problems.first is None)
        await agent.answer(*await agent.take(), value=1)
        assert await within(task) == 1


async def test_vanished_agents_are_a_problem(
    session: Session, agent: Agent, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the time that started agents have."""
    monkeypatch.setattr("batchflow.sessions.agents_watch._AGENTS_PATIENCE", 0.05)
    task = await session.submit("x.py")
    await agent.beat(state="exiting")
    with pytest.raises(NoAgents, match="no agent of pool demo is alive"):
        await within(task.outcome())


async def test_the_slots_that_are_known_spread_the_tasks(session: Session, agent: Agent) -> None:
    """A known short command rides in as many messages as there are slots."""
    await agent.beat(slots=4)
    parts_of(session).context.policy.seen("x.py", 0.001)
    first = await session.submit("x.py")
    await eventually(lambda: parts_of(session).context.policy.slots == 4)
    await agent.take(1)
    await session.submit_many("x.py", range(40))
    await agent.take(40)
    assert max(map(len, agent.messages)) <= 10
    await within(first.accepted())


async def test_agents_of_another_version_are_warned_of_once(pool: Pool, agent: Agent) -> None:
    """At the first look, though nothing was submitted; tasks run all the same."""
    await agent.beat(versions={"batchflow": "0.0.1"})
    session = pool.session("c")
    events = session.events()
    async with session:
        event = await within(anext(events))
        assert "1 of 1 agents are of batchflow 0.0.1" in event.message
        await parts_of(session).agents.meet()
        assert not events._queue
        task = await session.submit("x.py")
        await agent.answer(*await agent.take(), value=1)
        assert await within(task) == 1


async def test_explain_says_where_ones_tasks_run(session: Session, agent: Agent) -> None:
    """Those that run, on which host; the others wait in the queue."""
    await session.submit_many("x.py", range(3), task_id="mine")
    items = await agent.take(3)
    running = [
        Running(uid, "mine", "client_1", "default", "x.py", 1.0)
        for uid in (items[0].uid, items[2].uid, "o:1")
    ]
    await agent.beat(running=tuple(running))
    explanation = await session.explain()
    assert explanation.facts["running_on"] == {"host-1": ["mine", "mine"]}
    assert "1 queued, 2 running (2 on host-1), 0 done" in explanation.summary
    assert "messages in the task queue" in explanation.summary


# ---- a job that is deleted or closed


async def test_a_closed_job_takes_no_new_tasks(pool: Pool, agent: Agent) -> None:
    """What was submitted goes on, also for a submit that waits for room."""
    job = await pool.create_job("j")
    async with job.session("c") as session:
        task = await session.submit("x.py")
        await job.close()
        with pytest.raises(JobClosed):
            await session.submit("x.py")
        await agent.answer(*await agent.take(), value=1)
        assert await within(task) == 1


async def test_a_deleted_job_cancels_its_tasks(pool: Pool, agent: Agent, doubles: Doubles) -> None:
    """Those of sessions here, of sessions elsewhere and of clients that are gone."""
    job = await pool.create_job("j")
    async with job.session("gone") as gone:
        await gone.submit("x.py")
    here = await job.session("here")
    task = await here.submit("x.py")
    waiting = asyncio.ensure_future(task.outcome())
    await asyncio.sleep(0)
    await within(job.delete())
    with pytest.raises(SessionClosed, match="deleted"):
        await within(waiting)
    for item in await agent.take(2):
        blob = await pool.runtime.ctl.get(cancellation_blob(item.job, item.client))
        assert Cancellation.decode(blob.data).covers(*wire.split_uid(item.uid))
    assert doubles.storage.names("jobs/") == []
    assert doubles.storage.names("sessions/") == []


async def test_a_job_that_another_client_deletes_ends_its_sessions(
    pool: Pool, agent: Agent, connect: Callable[..., Client]
) -> None:
    """Soon, and whoever waits is told why. It used to be told to nobody elsewhere."""
    job = await pool.create_job("j")
    session = await job.session("c")
    task = await session.submit("x.py")
    waiting = asyncio.ensure_future(task.outcome())
    await agent.take()
    async with connect() as other:
        await within((await other.pool("demo")).delete_job("j"))
        with pytest.raises(SessionClosed, match="job 'j' was deleted"):
            await within(waiting)
    with pytest.raises(JobNotFound):
        await within(session.aclose())


async def test_a_job_that_another_client_deletes_ends_each_of_many_sessions(
    pool: Pool, agent: Agent, connect: Callable[..., Client]
) -> None:
    """They ask together, by a listing of the job's documents."""
    job = await pool.create_job("j")
    sessions = [await job.session(f"c-{number}") for number in range(5)]
    waiting = [asyncio.ensure_future((await session.submit("x.py")).outcome()) for session in sessions]
    await agent.take(5)
    async with connect() as other:
        await within((await other.pool("demo")).delete_job("j"))
        for wait in waiting:
            with pytest.raises(SessionClosed, match="job 'j' was deleted"):
                await within(wait)
    for session in sessions:
        with pytest.raises(JobNotFound):
            await within(session.aclose())


async def test_many_idle_sessions_ask_together_and_tell_seldom(pool: Pool, doubles: Doubles) -> None:
    """A hundred of them do not make two requests each in every interval."""
    async with AsyncExitStack() as stack:
        for number in range(20):
            await stack.enter_async_context(pool.session(f"c-{number}"))
        calls = doubles.storage.calls
        await eventually(lambda: calls.count(("list", "cancel/default/")) > 2)
        calls.clear()
        await eventually(lambda: calls.count(("list", "cancel/default/")) > 3)
        assert [call for call in calls if call[0] == "get" and call[1].startswith("cancel/")] == []
        told = [call for call in calls if call[0] == "put" and call[1].startswith("sessions/")]
        assert len(told) < 20 * 4  # in twelve intervals at most


async def test_many_busy_sessions_tell_seldom(pool: Pool, agent: Agent, doubles: Doubles) -> None:
    """Eighty of them, whose tasks run, write fewer documents than one in each interval."""
    async with AsyncExitStack() as stack:
        for number in range(80):
            session = await stack.enter_async_context(pool.session(f"c-{number}"))
            await session.submit("x.py")
        calls = doubles.storage.calls
        calls.clear()
        await eventually(lambda: calls.count(("list", "cancel/default/")) > 4)
        told = [call for call in calls if call[0] == "put" and call[1].startswith("sessions/")]
        assert len(told) < 80 * 4 * 0.7


async def test_sessions_that_look_for_agents_at_once_share_the_requests(
    pool: Pool, agent: Agent, doubles: Doubles
) -> None:
    """One that gives up leaves the others to ask by themselves."""
    calls, runtime = doubles.storage.calls, pool.runtime
    samples = await asyncio.gather(*(runtime.sample() for _ in range(10)))
    assert [sample.alive for sample in samples] == [1] * 10
    assert calls.count(("list", "agents/")) == 1
    first, second = (asyncio.create_task(runtime.sample()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).alive == 1


async def test_a_pool_that_another_client_deletes_ends_its_sessions(
    pool: Pool, agent: Agent, connect: Callable[..., Client]
) -> None:
    """Whoever waits gets a typed error, and so does whoever submits."""
    session = await pool.session("c")
    waits = [asyncio.ensure_future(wait) for wait in ((await session.submit("x.py")).outcome(),)]
    await agent.take()
    async with connect() as other:
        await within((await other.pool("demo")).delete())
        for wait in waits:
            with pytest.raises(SessionClosed):
                await within(wait)
    with pytest.raises(SessionClosed):
        await session.submit("x.py")
    with pytest.raises(BrokerError):
        await within(session.aclose())


async def test_tasks_for_a_queue_that_is_gone_have_their_outcome(session: Session, doubles: Doubles) -> None:
    """`SubmitFailed`, at once."""
    (queue,) = parts_of(session).context.runtime.manifest.task_queues
    await doubles.broker.delete_queue(queue.entity)
    task = await session.submit("x.py")
    with pytest.raises(SubmitFailed, match="deleted"):
        await within(task)


async def a_minute_passes(doubles: Doubles, *sessions: Session) -> None:
    """Nobody has renewed anything meanwhile: the mailboxes are lost and opened again."""
    lost = [parts_of(session).receiver.mailbox for session in sessions]
    doubles.broker.advance(60)
    await eventually(lambda: all(parts_of(each).receiver.mailbox not in (None, *lost) for each in sessions))


async def test_absent_reader_loses_and_delays_nothing(pool: Pool, agent: Agent, doubles: Doubles) -> None:
    """Results still arrive, other tasks run, and a reader that returns gets all of them."""
    async with pool.session("absent") as absent, pool.session("busy") as busy:
        await absent.submit_many("x.py", range(60))
        items = await agent.take(60)
        for minute, item in enumerate(items):
            await agent.answer(item)
            await a_minute_passes(doubles, absent, busy)
            task = await busy.submit("x.py", args=minute)
            await agent.answer(*await agent.take())
            assert await within(task) == [minute]
        results = [result async for result in absent.results()]
        assert [result.value for result in results] == [[number] for number in range(60)]
        await until_empty(absent)


async def test_a_later_job_of_the_same_name_is_not_cancelled(pool: Pool, agent: Agent) -> None:
    """Its tasks run, those of the deleted one do not.

    The deletion used to stay in the document that a session of the same name went on with.
    """
    job = await pool.create_job("j")
    async with job.session("c") as session:
        await session.submit("x.py", args="old")
    await job.delete()
    again = await pool.create_job("j")
    async with again.session("c") as session:
        task = await session.submit("x.py", args="new")
        old, new = await agent.take(2)
        document = Cancellation.decode((await pool.runtime.ctl.get(cancellation_blob("j", "c"))).data)
        assert document.covers(*wire.split_uid(old.uid))
        assert not document.covers(*wire.split_uid(new.uid))
        await within(task.cancel())
        document = Cancellation.decode((await pool.runtime.ctl.get(cancellation_blob("j", "c"))).data)
        assert document.covers(*wire.split_uid(old.uid))
        assert document.covers(*wire.split_uid(new.uid))


async def test_a_deleted_job_drops_mail_and_files(pool: Pool, agent: Agent, doubles: Doubles) -> None:
    """What nobody read of it is gone."""
    job = await pool.create_job("j")
    async with job.session("c") as session:
        await session.submit("x.py", args=["x" * 200_000])
        (item,) = await agent.take()
    await agent.store("outputs/j/c/u/f.txt", b"f")
    await agent.answer(item, value=await agent.store("results/j/c/1.json", b"1"))
    await within(job.delete())
    for prefix in ("args/", "results/", "outputs/"):
        assert doubles.storage.names(prefix) == []
    (queue,) = pool.runtime.manifest.results_queues
    assert (await doubles.broker.figures(queue.entity)).active == 0


async def test_deleting_a_job_whose_session_cannot_flush(pool: Pool, doubles: Doubles) -> None:
    """A session's problem does not keep the job."""
    job = await pool.create_job("j")
    session = await job.session("c")
    session.close_timeout = 0.1
    doubles.broker.faults.extend([BrokerError("down", retryable=True)] * 1000)
    await session.submit("x.py")
    await within(job.delete())
    assert doubles.storage.names("jobs/") == []
    doubles.broker.faults.clear()


# ---- several clients


async def test_two_clients_of_one_job_get_their_own(pool: Pool, serving: Agent) -> None:
    """Mailboxes do not mix, task ids may."""
    async with pool.session("a", job="j") as a, pool.session("b", job="j") as b:
        one = [await each.submit("x.py", args=each.name, task_id="1") for each in (a, b)]
        assert [await within(task) for task in one] == [["a"], ["b"]]


async def test_unnamed_sessions_are_ones_of_their_own(pool: Pool) -> None:
    """Any number of them."""
    async with pool.session() as a, pool.session() as b:
        assert a.name != b.name


@pytest.mark.parametrize("name", ["a/b", "", "ä", "-x", "x" * 61])
async def test_a_name_that_cannot_be_one_is_refused(pool: Pool, name: str) -> None:
    """Before anything is opened. An empty one is a mistake, such as an unset variable."""
    with pytest.raises(ConfigurationError, match="name"):
        pool.session(name)
    with pytest.raises(ConfigurationError, match="name"):
        pool.session("c", job=name)


async def test_periodic_work_of_many_idle_sessions_is_due_together(
    pool: Pool, serving: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a hundred sessions wake their program hardly more often than one."""
    clock, sleep = asyncio.get_running_loop().time, asyncio.sleep
    due: list[float] = []

    async def recorded(delay: float) -> None:
        if delay > 1.0:
            due.append(clock() + delay)
        await sleep(delay)

    monkeypatch.setattr("batchflow.sessions.receiving.dead_letters._FIRST", 0.0)
    monkeypatch.setattr(asyncio, "sleep", recorded)
    async with AsyncExitStack() as stack:
        for _ in range(20):
            session = await stack.enter_async_context(pool.session())
            await session.run("x.py", args=1)
        moments = 1 + sum(later - sooner > 0.002 for sooner, later in pairwise(sorted(due)))
    assert len(due) > 20 > 2 * moments
