"""Links open as fast as the broker answers, stay open while they are idle, and close at once."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import pytest
from azure.servicebus.aio import ServiceBusClient

from batchflow.azure import amqp_handler, servicebus
from batchflow.azure.sdk_patches import MAX_QUESTIONS, FrameReading, keep_alive, patched
from batchflow.errors import QueueNotFound
from batchflow.local.amqp import engine
from batchflow.ports.broker import OutgoingMessage
from tests.support.broker import next_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.azure.conftest import Bus

SDK_SLEEP = 0.05
"""Seconds that the SDK sleeps between two questions whether its client is ready."""
SDK_KEEP_ALIVE_SLEEP = 1
"""Seconds that the SDK's keep-alive task sleeps."""
IDLE_TIMEOUT = 0.5
"""Seconds: the local broker closes a connection on which it has received nothing for twice as long."""


class Sleeps:
    """Completed calls of `asyncio.sleep` in this process, by their length in seconds."""

    def __init__(self) -> None:
        self.taken = list[float]()

    def of(self, seconds: float) -> int:
        return self.taken.count(seconds)


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> Sleeps:
    record, sleep = Sleeps(), asyncio.sleep

    async def counted(delay: float, result: Any = None) -> Any:
        await sleep(delay)
        record.taken.append(delay)
        return result

    monkeypatch.setattr(asyncio, "sleep", counted)
    return record


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The SDK's senders and receivers that the adaptor makes: one for each time that a link opens."""
    made = list[Any]()

    def recorded(end: Any) -> Any:
        made.append(end)
        return patched(end)

    monkeypatch.setattr(servicebus, "patched", recorded)
    return made


async def test_the_unpatched_sdk_sleeps_while_a_link_opens(bus: Bus, sleeps: Sleeps) -> None:
    """When this fails, the patch of `client_ready_async` can go."""
    queue = await bus.make()
    async with (
        ServiceBusClient.from_connection_string(bus.server.connection_string) as client,
        client.get_queue_sender(queue.entity),
    ):
        assert sleeps.of(SDK_SLEEP) > 4


@pytest.mark.parametrize("kind", ["sender", "receiver", "mailbox"])
async def test_link_opens_without_sleeps(bus: Bus, sleeps: Sleeps, kind: str) -> None:
    queue = await bus.make(sessions=kind == "mailbox")
    arguments = ["a mailbox"] if kind == "mailbox" else []
    async with await getattr(bus.broker, kind)(queue, *arguments):
        assert sleeps.of(SDK_SLEEP) == 0


async def test_lost_link_opens_again_without_sleeps(bus: Bus, sleeps: Sleeps, handlers: list[Any]) -> None:
    queue = await bus.make()
    async with await bus.broker.sender(queue) as sender:
        bus.server.drop_connections()
        await sender.send(OutgoingMessage(b"", "a"))
        assert len(handlers) == 2
        assert sleeps.of(SDK_SLEEP) == 0


async def test_open_link_has_its_own_ready_method_again(bus: Bus, handlers: list[Any]) -> None:
    queue = await bus.make()
    async with await bus.broker.sender(queue):
        assert "client_ready_async" not in vars(handlers[0]._handler)


async def test_refusal_is_typed_and_told_without_sleeps(bus: Bus, sleeps: Sleeps) -> None:
    queue = await bus.make()
    await bus.admin.delete_queue(queue.entity)
    with pytest.raises(QueueNotFound):
        await bus.broker.sender(queue)
    assert sleeps.of(SDK_SLEEP) == 0


class UnknownSdk:
    """A sender of an SDK without the members that are patched."""


class NeverReady:
    """A sender that opens like the SDK's, with a client that is never ready."""

    def __init__(self) -> None:
        self._handler: Any = None
        self.asked = 0

    def _create_handler(self, _authentication: object) -> None:
        self._handler = self.Client(self)

    class Client:
        def __init__(self, end: NeverReady) -> None:
            self._end = end

        async def client_ready_async(self) -> bool:
            self._end.asked += 1
            return False


async def test_an_sdk_without_those_members_is_left_as_it_is() -> None:
    end = UnknownSdk()
    assert patched(end) is end
    assert vars(end) == {}
    await keep_alive(end)


async def test_a_client_that_is_never_ready_is_left_to_the_sdk() -> None:
    """The SDK then sleeps and looks at its deadline."""
    end: Any = patched(NeverReady())
    end._create_handler(None)
    assert not await end._handler.client_ready_async()
    assert end.asked == MAX_QUESTIONS
    assert not await end._handler.client_ready_async()


async def test_the_unpatched_sdk_reads_beside_a_receive(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, the SDK's keep-alive need not be replaced."""
    from azure.servicebus._pyamqp.aio import AMQPClientAsync

    reads = 0
    made: Callable[..., Any] = AMQPClientAsync._keep_alive_async

    async def counted(self: Any) -> None:
        nonlocal reads
        reads += 1
        await made(self)

    monkeypatch.setattr(AMQPClientAsync, "_keep_alive_async", counted)
    queue = await bus.make()
    async with (
        ServiceBusClient.from_connection_string(bus.server.connection_string) as client,
        client.get_queue_receiver(queue.entity) as receiver,
    ):
        await receiver.receive_messages(max_message_count=1, max_wait_time=0.5)
    assert reads == 1


@pytest.mark.parametrize("kind", ["sender", "receiver", "mailbox"])
async def test_no_keep_alive_task_is_started(bus: Bus, handlers: list[Any], kind: str) -> None:
    queue = await bus.make(sessions=kind == "mailbox")
    arguments = ["a mailbox"] if kind == "mailbox" else []
    async with await getattr(bus.broker, kind)(queue, *arguments):
        assert handlers[0]._handler._keep_alive_thread is None


@pytest.fixture
def impatient_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The local broker closes connections that are silent for a second, instead of eight minutes."""
    monkeypatch.setattr(engine, "IDLE_TIMEOUT", IDLE_TIMEOUT)


@pytest.fixture
def frequent_keep_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amqp_handler, "KEEP_ALIVE_INTERVAL", IDLE_TIMEOUT / 5)


async def test_broker_closes_a_silent_connection(
    bus: Bus, impatient_broker: None, handlers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the next test would show nothing. The link opens again at the next send."""
    monkeypatch.setattr(FrameReading, "longest", math.inf)
    queue = await bus.make()
    async with await bus.broker.sender(queue) as sender:
        await asyncio.sleep(4 * IDLE_TIMEOUT)
        await sender.send(OutgoingMessage(b"", "a"))
        assert len(handlers) == 2
    assert await bus.active(queue) == 1


async def test_idle_links_keep_their_connections(
    bus: Bus, impatient_broker: None, frequent_keep_alive: None, handlers: list[Any]
) -> None:
    """An agent that computes for long sends nothing; its connections stay open."""
    queue = await bus.make()
    async with await bus.broker.sender(queue) as sender, await bus.broker.receiver(queue) as receiver:
        await sender.send(OutgoingMessage(b"", "a"))
        delivery = await next_of(receiver)
        await asyncio.sleep(6 * IDLE_TIMEOUT)
        await receiver.complete(delivery)
        await sender.send(OutgoingMessage(b"", "b"))
        assert (await next_of(receiver)).message_id == "b"
        assert len(handlers) == 2


async def test_waiting_receiver_keeps_its_connection(
    bus: Bus, impatient_broker: None, handlers: list[Any]
) -> None:
    """The receive itself sends the empty frames."""
    queue = await bus.make()
    async with await bus.broker.receiver(queue) as receiver:
        assert await receiver.receive(6 * IDLE_TIMEOUT) is None
        assert await receiver.receive(0.1) is None
        assert len(handlers) == 1


async def test_idle_mailbox_keeps_its_session(
    bus: Bus, impatient_broker: None, frequent_keep_alive: None
) -> None:
    queue = await bus.make(sessions=True)
    async with await bus.broker.mailbox(queue, "s") as mailbox:
        await asyncio.sleep(6 * IDLE_TIMEOUT)
        await mailbox.set_state(b"state")
        assert await mailbox.get_state() == b"state"


async def test_message_for_an_idle_receiver_is_released(bus: Bus, frequent_keep_alive: None) -> None:
    """A receive that ended has left its credit at the broker; the next message still reaches another one."""
    queue = await bus.make()
    async with (
        await bus.broker.receiver(queue) as idle,
        await bus.broker.receiver(queue) as other,
        await bus.broker.sender(queue) as sender,
    ):
        assert await idle.receive(0.1) is None
        await asyncio.sleep(0.5)  # until the SDK's receive has ended as well
        await sender.send(OutgoingMessage(b"", "a"))
        delivery = await next_of(other)
        assert delivery.message_id == "a"
        await other.complete(delivery)


async def test_the_unpatched_sdk_waits_for_its_keep_alive(bus: Bus, sleeps: Sleeps) -> None:
    """When this fails, closing is no reason any more to replace the SDK's keep-alive."""
    queue = await bus.make()
    async with ServiceBusClient.from_connection_string(bus.server.connection_string) as client:
        async with client.get_queue_sender(queue.entity):
            assert sleeps.of(SDK_KEEP_ALIVE_SLEEP) == 0
        assert sleeps.of(SDK_KEEP_ALIVE_SLEEP) == 1


async def test_closing_and_reopening_wait_for_no_keep_alive(bus: Bus, sleeps: Sleeps) -> None:
    queue = await bus.make()
    async with await bus.broker.sender(queue) as sender:
        await sender.send(OutgoingMessage(b"", "a"))
        bus.server.drop_connections()
        await sender.send(OutgoingMessage(b"", "b"))
    assert sleeps.of(SDK_KEEP_ALIVE_SLEEP) == 0
