"""Dead letters become outcomes, though no agent ever comes back."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from batchflow.errors import BrokerError, TaskFailed, TaskPoisoned
from batchflow.model import Status
from batchflow.pool import Pool
from batchflow.ports.broker import OutgoingMessage, QueueRef
from batchflow.protocol import wire
from batchflow.protocol.failed_tasks import FAILED
from batchflow.session import Session
from batchflow.sessions.tracing.meters import Meters
from tests.support.agent import Agent, result_of
from tests.support.services import Doubles
from tests.support.session_parts import parts_of
from tests.support.waiting import eventually, within


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks follow one another at once."""
    monkeypatch.setattr("batchflow.sessions.receiving.dead_letters._FIRST", 0.0)
    monkeypatch.setattr("batchflow.sessions.receiving.dead_letters.LOOK_INTERVAL", 0.01)
    monkeypatch.setattr("batchflow.protocol.dead_letters.LOOK_TIMEOUT", 0.0)


async def dead_letter_all(doubles: Doubles, queue: QueueRef, reason: str) -> None:
    """Dead-letter what lies in a queue without sessions."""
    async with await doubles.broker.receiver(queue) as receiver:
        while (delivery := await receiver.receive(0.05)) is not None:
            await receiver.dead_letter(delivery, reason, "for the test")


async def dead(doubles: Doubles, queue: QueueRef) -> int:
    return (await doubles.broker.figures(queue.entity)).dead


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> InMemoryMetricReader:
    """Reads what sessions count that open from now on."""
    reader = InMemoryMetricReader()
    meters = Meters(MeterProvider([reader]).get_meter("t"))
    monkeypatch.setattr("batchflow.sessions.records.task_traces.active_meters", lambda: meters)
    return reader


@pytest.mark.parametrize(
    ("reason", "kind", "words"),
    [
        ("TTLExpiredException", TaskFailed, "expired in the queue"),
        ("MaxDeliveryCountExceeded", TaskPoisoned, "deliveries"),
        ("MessageUnreadable", TaskFailed, "MessageUnreadable: for the test"),
    ],
)
async def test_dead_tasks_have_their_outcome(
    reader: InMemoryMetricReader,
    session: Session,
    doubles: Doubles,
    reason: str,
    kind: type[Exception],
    words: str,
) -> None:
    """No agent lives, and the waiting session gets the outcomes all the same; the dead letters are gone.

    Each task is counted once, and kept to run again.
    """
    tasks = await session.submit_many("x.py", range(3), tag={"k": 1})
    await within(session.flush())
    (queue,) = parts_of(session).context.runtime.manifest.task_queues
    await dead_letter_all(doubles, queue, reason)
    for task in tasks:
        with pytest.raises(kind, match=words):
            await within(task)
    outcome = await tasks[0].outcome()
    assert (outcome.status, outcome.tag, outcome.node) == (Status.FAILED, {"k": 1}, None)
    await eventually_none(doubles, queue)
    await eventually(lambda: counted(reader, "batchflow.dead_letters") >= 3)
    assert counted(reader, "batchflow.dead_letters") == 3
    assert len([info async for info in parts_of(session).context.runtime.ctl.list(FAILED)]) == 3


def counted(reader: InMemoryMetricReader, name: str) -> float:
    """Return what a counter has come to, over all its labels."""
    data = reader.get_metrics_data()
    metrics = [] if data is None else data.resource_metrics[0].scope_metrics[0].metrics
    points = [point for metric in metrics if metric.name == name for point in metric.data.data_points]
    return sum(point.value for point in points if isinstance(point, NumberDataPoint))


async def eventually_none(doubles: Doubles, queue: QueueRef) -> None:
    async with asyncio.timeout(20):
        while await dead(doubles, queue):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_task_that_expires_while_its_session_waits(
    pool: Pool, session: Session, doubles: Doubles
) -> None:
    """The queue's time to live is over: the broker gives up on it, and the session hears of it."""
    task = await session.submit("x.py")
    await within(task.accepted())
    (queue,) = pool.runtime.manifest.task_queues
    message = doubles.broker.tried[-1]
    async with await doubles.broker.receiver(queue) as receiver:
        delivery = await receiver.receive(1.0)
        assert delivery is not None
        await receiver.complete(delivery)
    mortal = OutgoingMessage(message.body, "mortal", time_to_live=3600.0)
    async with await doubles.broker.plain_sender(queue) as sender:
        await sender.send(mortal)
    doubles.broker.advance(3601)
    with pytest.raises(TaskFailed, match="expired in the queue"):
        await within(task)


async def test_a_session_that_opens_tells_for_a_client_that_is_gone(
    pool: Pool, doubles: Doubles, agent: Agent
) -> None:
    """What was dead before anybody looked is in the mailbox when its client comes back."""
    async with pool.session("gone") as gone:
        await gone.submit("x.py", task_id="old")
    (queue,) = pool.runtime.manifest.task_queues
    await dead_letter_all(doubles, queue, "TTLExpiredException")
    async with pool.session("other"):
        await eventually_none(doubles, queue)
    async with pool.session("gone") as again:
        (result,) = [result async for result in again.results()]
    assert (result.task_id, result.kind) == ("old", "TaskFailed")


async def test_dead_results_are_sent_again(
    pool: Pool, session: Session, agent: Agent, doubles: Doubles
) -> None:
    """Their message goes to the mailbox once more, under an id that the broker does not know yet."""
    task = await session.submit("x.py")
    (item,) = await agent.take()
    (queue,) = pool.runtime.manifest.results_queues
    mailbox = parts_of(session).receiver.mailbox
    assert mailbox is not None
    body = wire.join("results", [wire.encode(result_of(item, "late"))])
    mortal = OutgoingMessage(body, "one", session_id="default/elsewhere", time_to_live=10.0)
    async with await doubles.broker.plain_sender(queue) as sender:
        await sender.send(mortal)
    doubles.broker.advance(11)
    async with pool.session("elsewhere") as elsewhere:
        (result,) = [await within(anext(elsewhere.results(follow=True)))]
    assert result.value == "late"
    assert not task._entry.done


async def test_undecodable_dead_letters_stay_and_hide_no_others(
    pool: Pool, session: Session, doubles: Doubles
) -> None:
    """They are for people; those behind them become results, at every look."""
    (queue,) = pool.runtime.manifest.task_queues
    async with await doubles.broker.plain_sender(queue) as sender:
        await sender.send(OutgoingMessage(b"not a pack", "unreadable"))
    await dead_letter_all(doubles, queue, "MessageUnreadable")
    for _ in range(2):
        task = await session.submit("x.py")
        await within(task.accepted())
        await dead_letter_all(doubles, queue, "TTLExpiredException")
        with pytest.raises(TaskFailed):
            await within(task)
        doubles.broker.advance(31)
    assert await dead(doubles, queue) == 1


@pytest.mark.parametrize("who", ["receiver", "figures"])
async def test_session_without_rights_leaves_dead_letters_to_others(
    pool: Pool, agent: Agent, doubles: Doubles, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """A session works without; one that may not ask how many dead letters there are looks for itself."""
    asked: list[str] = []

    async def refuse(*_: object, **__: object) -> None:
        asked.append(who)
        raise BrokerError("Unauthorized")

    monkeypatch.setattr(doubles.broker, who, refuse)
    async with pool.session("c") as session:
        task = await session.submit("x.py")
        await within(task.accepted())
        if who == "figures":
            await dead_letter_all(doubles, pool.runtime.manifest.task_queues[0], "TTLExpiredException")
            with pytest.raises(TaskFailed):
                await within(task)
        else:
            doubles.broker._queue(pool.runtime.manifest.task_queues[0])
            await eventually(lambda: not parts_of(session).context.problems.first)
    assert session.closed
