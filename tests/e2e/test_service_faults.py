"""What Service Bus may do to a session and an agent that work: both go on, and the session tells.

The local cloud's services run in this process, so that their faults are at hand; the node's agent is a
process of its own.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from batchflow import Client, Pool
from batchflow.errors import Backpressure, BrokerError, MailboxInUse, SessionClosed, SubmitFailed, TaskFailed
from batchflow.local.server import LocalCloud
from batchflow.local.servicebus.server import ServiceBusServer
from batchflow.model import Event
from batchflow.ports.broker import OutgoingMessage
from batchflow.ports.storage import EXACTNESS
from batchflow.protocol import wire
from batchflow.protocol.dead_letters import DeadLetterReason, read_tasks
from batchflow.protocol.documents import gone_after
from batchflow.session import Session
from tests.support.session_parts import parts_of
from tests.support.waiting import within

TASKS = Path(__file__).parent / "tasks"
HOLDER = Path(__file__).parent / "crashing_client.py"
PATIENCE = 40.0


@dataclass(frozen=True, slots=True)
class Cloud:
    """A client on a local cloud, and the cloud's Service Bus."""

    client: Client
    pool: Pool
    bus: ServiceBusServer


@pytest.fixture
async def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    """One node of one slot, short locks. Its parameter: seconds after which links without traffic go."""
    buses: list[ServiceBusServer] = []

    class Noted(ServiceBusServer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            buses.append(self)

    monkeypatch.setattr("batchflow.local.server.ServiceBusServer", Noted)
    cloud = LocalCloud(nodes=1, slots=1, link_idle_timeout=getattr(request, "param", 600.0))
    settings = await cloud.start()
    settings = replace(
        settings,
        pool=replace(settings.pool, lock_duration=5.0),
        session=replace(settings.session, patience=1.0, close_timeout=8.0, presence_interval=0.2),
    )
    try:
        async with Client(settings) as client:
            pool = await client.ensure_pool("shared", files=[TASKS])
            yield Cloud(client, pool, buses[0])
    finally:
        await cloud.aclose()


@pytest.fixture
async def session(cloud: Cloud) -> AsyncIterator[Session]:
    """One whose pool has an agent that works."""
    session = await cloud.pool.session(f"test-{uuid.uuid4().hex[:8]}")
    await within(session.run("echo.py", args=0))
    yield session
    with suppress(BrokerError):  # its end is the test's matter
        await session.aclose()


async def told(events: AsyncIterator[Event], words: str) -> None:
    """Return when an event has these words."""
    async with asyncio.timeout(PATIENCE):
        async for event in events:
            if words in event.message:
                return


async def weather(session: Session, strike: Callable[[], object]) -> None:
    """Tasks before, while and after something strikes, which it does three times: each has its outcome."""
    tasks = []
    for _ in range(3):
        tasks += await session.submit_many("echo.py", range(20))
        await within(tasks[-20].outcome())
        strike()
        tasks += await session.submit_many("echo.py", range(20))
    outcomes = [await within(task.outcome()) for task in tasks]
    assert [outcome.value for outcome in outcomes] == [[number] for number in range(20)] * 6


async def test_session_and_agent_work_on_after_their_tokens_expire(cloud: Cloud, session: Session) -> None:
    """All tokens expire at once."""
    events = session.events()
    await weather(session, cloud.bus.expire_tokens)
    await told(events, "the mailbox was lost and is opened again")


async def test_session_and_agent_work_on_after_lost_connections(cloud: Cloud, session: Session) -> None:
    """All connections are lost, those of the agent too."""
    events = session.events()
    await weather(session, cloud.bus.drop_connections)
    await told(events, "the mailbox was lost and is opened again")


async def test_throttling_is_waited_out_and_reported(cloud: Cloud, session: Session) -> None:
    """Service Bus answers with error 50009 for a while."""
    events = session.events()
    await weather(session, lambda: cloud.bus.throttle(0.5))
    await told(events, "50009")


@pytest.mark.parametrize("cloud", [1.5], indirect=True)
async def test_session_works_on_after_its_idle_links_were_closed(cloud: Cloud, session: Session) -> None:
    """The work after a silence goes on as before."""
    for number in range(2):
        await asyncio.sleep(2.5)  # the silence itself
        assert await within(session.run("echo.py", args=number)) == [number]


async def test_tasks_submitted_while_service_bus_is_away_run_when_it_is_back(
    cloud: Cloud, session: Session
) -> None:
    """Waiting calls are told meanwhile."""
    events = session.events()
    task = await session.submit("sleeps.py", "0.5")
    await within(task.accepted())
    port = cloud.bus.port
    await cloud.bus.aclose()
    late = await session.submit("echo.py", args="late")
    for wait in (session.flush(), late.outcome(), task.outcome(), anext(session.results())):
        with pytest.raises(BrokerError, match="tried again"):
            await within(wait)
    await cloud.bus.start(port=port)
    await told(events, "that is over")
    async with asyncio.timeout(PATIENCE):
        while parts_of(session).context.problems.first:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await within(task) == "slept"
    assert await within(late) == ["late"]


async def test_closing_while_service_bus_is_gone_ends_in_time(cloud: Cloud, session: Session) -> None:
    """The error says what was not accepted; nothing of the session is left running."""
    await cloud.bus.aclose()
    task = await session.submit("echo.py", args=1)
    waiting = asyncio.ensure_future(task.outcome())
    started = time.monotonic()
    with pytest.raises(BrokerError, match="1 of its tasks"):
        await session.aclose()
    assert time.monotonic() - started < 2 * session.close_timeout + 1
    with pytest.raises((SessionClosed, BrokerError)):
        await within(waiting)
    assert not [each for each in asyncio.all_tasks() if session.name in each.get_name()]


@pytest.mark.parametrize("moment", ["at work", "opening", "looking into dead letters"])
async def test_closing_leaves_no_connection_open(
    cloud: Cloud, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The session is closed at different moments; its journal is closed too."""
    monkeypatch.setattr("batchflow.sessions.receiving.dead_letters._FIRST", 0.0)
    before = set(cloud.bus.broker.peers)
    another = cloud.pool.session("another", journal=tmp_path / "shown")
    opening = asyncio.ensure_future(another)
    async with asyncio.timeout(PATIENCE):
        while not cloud.bus.broker.peers - before:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    if moment != "opening":
        await within(opening)
    if moment == "at work":
        assert await within(another.run("echo.py", args=1)) == [1]
    await within(another.aclose())
    opening.cancel()
    await asyncio.wait([opening])
    async with asyncio.timeout(PATIENCE):
        while cloud.bus.broker.peers - before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert str(tmp_path / "shown") not in {
        str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()
    }


async def test_deleted_results_queue_fails_waiting_calls(cloud: Cloud, session: Session) -> None:
    """A typed error names the queue, within seconds."""
    task = await session.submit("sleeps.py", "30")
    waits = [asyncio.ensure_future(wait) for wait in (task.outcome(), anext(session.results()))]
    await within(session.flush())
    await cloud.client.connections.admin.delete_queue(cloud.pool.runtime.manifest.results_queues[0].entity)
    for wait in waits:
        with pytest.raises(SessionClosed, match="could not be found"):
            await within(wait, 15.0)
    with pytest.raises(BrokerError):
        await within(session.aclose())


async def test_deleted_task_queue_fails_new_tasks(cloud: Cloud, session: Session) -> None:
    """They end as `SubmitFailed`, within seconds."""
    await cloud.client.connections.admin.delete_queue(cloud.pool.runtime.manifest.task_queues[0].entity)
    task = await session.submit("echo.py", args=1)
    with pytest.raises(SubmitFailed):
        await within(task, 15.0)


async def test_dead_letters_become_outcomes_without_an_agent(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That holds for tasks, and for results that expired in a mailbox before their client came back."""
    monkeypatch.setattr("batchflow.sessions.receiving.dead_letters._FIRST", 0.0)
    monkeypatch.setattr("batchflow.sessions.receiving.dead_letters.LOOK_INTERVAL", 0.1)
    pool = await cloud.client.ensure_pool("lonely", files=[TASKS], nodes=0)
    (task_queue,), (results_queue,) = pool.runtime.manifest.task_queues, pool.runtime.manifest.results_queues
    broker = cloud.client.connections.broker
    async with pool.session("mine") as session:
        events = session.events()
        task = await session.submit("echo.py", args=1)
        await within(task.accepted())
        async with await broker.receiver(task_queue) as receiver:
            delivery = await receiver.receive(PATIENCE)
            assert delivery is not None
            await receiver.dead_letter(delivery, "TTLExpiredException", "by the test")
        (item,) = read_tasks(delivery.body)
        with pytest.raises(TaskFailed, match="expired in the queue"):
            await within(task)
        late = replace(DeadLetterReason("TaskFailed", "late").outcome(item), uid="another:0", client="gone")
        body = wire.join("results", [wire.encode(late)])
        async with await broker.sender(results_queue) as sender:
            await sender.send(OutgoingMessage(body, "late", session_id="default/gone", time_to_live=0.5))
        await session.submit("echo.py", args=2)  # so that the session waits, and looks
        await told(events, "1 dead letters of results were sent again")
        async with pool.session("gone") as gone:
            result = await within(anext(gone.results(follow=True)))
            assert (result.error, result.client) == ("late", "gone")


async def test_paused_holder_is_told_that_it_was_replaced(cloud: Cloud, tmp_path: Path) -> None:
    """A client that stands still for longer than its lock loses its mailbox to the next one, which says what
    it waits for; when it goes on it ends as taken over. No outcome is lost, shown again are marked ones."""
    config = tmp_path / "cloud.toml"
    config.write_text(cloud.client.settings.to_toml())
    name, tasks = f"paused-{uuid.uuid4().hex[:8]}", 300
    holder = await asyncio.create_subprocess_exec(
        *(sys.executable, str(HOLDER), str(config), name, str(tasks)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert holder.stdout is not None
    shown = [(await within(holder.stdout.readline())).decode().strip() for _ in range(3)]
    with pytest.raises(MailboxInUse, match=f"process {holder.pid}"):
        await within(cloud.pool.session(name, job="crash"))
    os.kill(holder.pid, signal.SIGSTOP)
    try:
        # The silence itself: three signs of life are missing, by dates to the second. It is locked still.
        await asyncio.sleep(gone_after(0.2) + 2 * EXACTNESS + 0.1)
        successor = cloud.pool.session(name, job="crash")
        events = successor.events()
        async with successor:
            await told(events, "waiting for a dead client's lock to run out")
            os.kill(holder.pid, signal.SIGCONT)
            *rest, last = (await within(holder.communicate()))[0].decode().splitlines()
            assert "the session is closed" in last
            assert f"taken over by {socket.gethostname()}, process {os.getpid()}" in last
            shown += rest
            results = [result async for result in successor.results()]
    finally:
        if holder.returncode is None:
            holder.kill()
            await holder.wait()
    assert {*shown, *(result.task_id for result in results)} == {str(number) for number in range(tasks)}
    assert all(result.repeated for result in results if result.task_id in shown)


ONCE = """
import pathlib
def do_action(engine, args):
    with open(args[0], "a") as runs:
        runs.write("x")
    return args
"""


async def fill(cloud: Cloud) -> int:
    """Fill the results queue with messages for another client, to the last byte that it takes; how many."""
    queue = cloud.pool.runtime.manifest.results_queues[0]
    async with asyncio.timeout(PATIENCE):
        admin = cloud.client.connections.admin_of(queue)
        while (await admin.figures(queue.entity)).active:  # noqa: ASYNC110 - would make room once it is settled
            await asyncio.sleep(0.01)
    entity = cloud.bus.broker.namespace.find(queue.entity)
    assert entity is not None
    entity.queue.reconfigure(replace(entity.queue.spec, max_size=200_000))
    sent = 0
    async with await cloud.client.connections.broker.sender(queue) as sender:
        for size in (10_000, 100):
            with suppress(Backpressure):
                while True:
                    await sender.send(OutgoingMessage(b"x" * size, f"filler-{sent}", "default/somebody-else"))
                    sent += 1
    return sent


async def test_agent_waits_for_room_in_a_full_results_queue(
    cloud: Cloud, session: Session, tmp_path: Path
) -> None:
    """It keeps lock and result, pulls nothing more and says why; when there is room it goes on.

    It was waiting for a message when that came to be: the one that comes then it takes.
    """
    runs = [tmp_path / str(number) for number in range(4)]
    async with cloud.pool.session(files={"once.py": ONCE.encode()}) as other:
        await within(other.run("once.py", str(tmp_path / "warm")))
        sent = await fill(cloud)
        tasks = [await other.submit("once.py", str(runs[0]))]
        await _until_told(cloud, "full|no room|holds")
        for run in runs[1:]:  # a message each
            tasks.append(await other.submit("once.py", str(run)))
            await within(tasks[-1].accepted())
        since = time.monotonic()
        while time.monotonic() < since + 7.0:  # longer than the lock
            assert runs[0].read_text() == "x"
            assert not any(run.exists() for run in runs[2:])
            await asyncio.sleep(0.2)
        queue = cloud.pool.runtime.manifest.results_queues[0]
        async with await cloud.client.connections.broker.mailbox(queue, "default/somebody-else") as mailbox:
            for _ in range(sent):
                delivery = await within(mailbox.receive(PATIENCE))
                assert delivery is not None
                await mailbox.complete(delivery)
        outcomes = [await within(task.outcome()) for task in tasks]
    assert [outcome.attempt for outcome in outcomes] == [1] * 4
    assert all(run.exists() for run in runs)
    await _until_told(cloud, None)


async def _until_told(cloud: Cloud, words: str | None) -> None:
    """Return when the agent's heartbeat has these words; None: when nothing troubles it."""
    async with asyncio.timeout(PATIENCE):
        while True:
            (beat,) = await cloud.pool.heartbeats()
            trouble = beat.trouble
            if trouble is None if words is None else trouble is not None and re.search(words, trouble):
                return
            await asyncio.sleep(0.05)
