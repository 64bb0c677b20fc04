"""A link waits for frames without waking in vain, and reads those that came without a task for each."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from azure.servicebus._pyamqp.aio._transport_async import AsyncTransport
from azure.servicebus.aio import ServiceBusClient

from batchflow.azure import amqp_handler, servicebus
from batchflow.azure.sdk_patches import FrameReading, patched, reading_of, take_over
from batchflow.ports.broker import OutgoingMessage
from tests.support.broker import next_of

if TYPE_CHECKING:
    from tests.unit.azure.conftest import Bus

FLOW = bytes.fromhex("0000001002000000005313c003024040")
"""A frame of channel 0: a flow performative with two empty fields."""
SOON = 5.0
"""Seconds, far less than a receive waits."""


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """The timeouts with which frames were read."""
    made = list[float | None]()
    read = FrameReading.receive_frame

    async def recorded(self: FrameReading, timeout: float | None = None, **options: Any) -> tuple[Any, Any]:
        made.append(timeout)
        return await read(self, timeout, **options)

    monkeypatch.setattr(FrameReading, "receive_frame", recorded)
    return made


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The SDK's senders and receivers that the adaptor makes."""
    made = list[Any]()

    def recorded(end: Any) -> Any:
        made.append(end)
        return patched(end)

    monkeypatch.setattr(servicebus, "patched", recorded)
    return made


def _counting_tasks() -> list[Any]:
    """Return the tasks that are begun from now on."""
    made = list[Any]()

    def begin(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(work)
        return asyncio.Task(work, loop=loop, **options)

    asyncio.get_running_loop().set_task_factory(begin)
    return made


async def test_the_unpatched_sdk_begins_a_task_for_each_frame(bus: Bus) -> None:
    """When this fails, there is less reason to replace the SDK's reading."""
    queue = await bus.make()
    async with (
        ServiceBusClient.from_connection_string(bus.server.connection_string) as client,
        client.get_queue_receiver(queue.entity) as receiver,
    ):
        tasks = _counting_tasks()
        await receiver.receive_messages(max_message_count=1, max_wait_time=0.5)
    assert any(getattr(work, "__name__", "") == "read" for work in tasks)


@pytest.mark.parametrize("kind", ["receiver", "mailbox"])
async def test_a_receive_without_a_message_reads_once(bus: Bus, reads: list[float | None], kind: str) -> None:
    queue = await bus.make(sessions=kind == "mailbox")
    arguments = ["a mailbox"] if kind == "mailbox" else []
    async with await getattr(bus.broker, kind)(queue, *arguments) as inbox:
        assert await inbox.receive(0.1) is None
        await asyncio.sleep(0.1)
        reads.clear()
        assert await inbox.receive(1.0) is None
        assert len(reads) <= 2


async def test_an_idle_sender_reads_nothing(bus: Bus, reads: list[float | None]) -> None:
    queue = await bus.make()
    async with await bus.broker.sender(queue) as sender:
        await sender.send(OutgoingMessage(b"", "a"))
        reads.clear()
        await asyncio.sleep(0.5)
        assert reads == []


async def test_messages_pass_without_a_task_for_each_frame(bus: Bus) -> None:
    queue = await bus.make()
    async with await bus.broker.sender(queue) as sender, await bus.broker.receiver(queue) as receiver:
        tasks = _counting_tasks()
        for number in range(20):
            await sender.send(OutgoingMessage(b"x" * 1000, str(number)))
            await receiver.complete(await next_of(receiver))
        assert [work for work in tasks if getattr(work, "__name__", "") == "read"] == []


async def test_a_call_ends_a_receive_and_the_receive_goes_on(bus: Bus) -> None:
    queue = await bus.make(sessions=True)
    async with await bus.broker.mailbox(queue, "s") as mailbox, await bus.broker.sender(queue) as sender:
        receiving = asyncio.create_task(mailbox.receive(60.0))
        await asyncio.sleep(0.01)
        began = time.monotonic()
        await mailbox.set_state(b"state")
        assert time.monotonic() - began < SOON
        assert not receiving.done()
        await sender.send(OutgoingMessage(b"", "a", session_id="s"))
        delivery = await receiving
        assert delivery is not None
        assert delivery.message_id == "a"


async def test_no_message_is_lost_or_comes_twice_among_calls(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Receives are ended at any moment; each message comes once, with its first delivery."""
    monkeypatch.setattr(amqp_handler, "RECEIVE_TURN", 0.0)
    queue = await bus.make(sessions=True)
    async with await bus.broker.mailbox(queue, "s") as mailbox, await bus.broker.sender(queue) as sender:

        async def save() -> None:
            while True:
                await mailbox.set_state(b"state")

        saving = asyncio.create_task(save())
        for number in range(40):
            await sender.send(OutgoingMessage(b"", str(number), session_id="s"))
            delivery = await mailbox.receive(SOON)
            assert delivery is not None
            assert (delivery.message_id, delivery.delivery_count) == (str(number), 0)
            await mailbox.complete(delivery)
        saving.cancel()


async def test_closing_ends_a_receive(bus: Bus) -> None:
    queue = await bus.make()
    receiver = await bus.broker.receiver(queue)
    receiving = asyncio.create_task(receiver.receive(60.0))
    await asyncio.sleep(0.2)
    began = time.monotonic()
    await receiver.aclose()
    await asyncio.wait({receiving}, timeout=SOON)
    assert time.monotonic() - began < SOON
    assert receiving.done()
    assert receiving.exception() is not None


async def test_a_lost_connection_ends_a_receive(bus: Bus, handlers: list[Any]) -> None:
    queue = await bus.make()
    async with await bus.broker.receiver(queue) as receiver, await bus.broker.sender(queue) as sender:
        receiving = asyncio.create_task(receiver.receive(60.0))
        await asyncio.sleep(0.2)
        bus.server.drop_connections()
        await sender.send(OutgoingMessage(b"", "a"))
        delivery = await asyncio.wait_for(receiving, 2 * SOON)
        assert delivery is not None
        assert reading_of(handlers[0]) is not reading_of(handlers[-1])


def _connection() -> tuple[Any, asyncio.StreamReader]:
    """Return a connection of the SDK's own reading, and what the network puts its bytes into."""
    transport: Any = AsyncTransport("localhost")
    transport.reader = reader = asyncio.StreamReader()
    return SimpleNamespace(_transport=transport, _remote_idle_timeout_send_frame=None), reader


async def test_a_frame_that_comes_in_pieces_is_read_whole() -> None:
    connection, reader = _connection()
    reading = FrameReading(connection)
    for cut in range(1, len(FLOW)):
        reader.feed_data(FLOW[:cut])
        assert await reading.receive_frame(timeout=0.001) == (None, None)
        reader.feed_data(FLOW[cut:] + FLOW)
        for _ in range(2):
            channel, frame = await reading.receive_frame(timeout=SOON)
            assert (channel, frame[0]) == (0, 0x13)
    assert not reading.has_data


async def test_the_end_of_the_connection_is_an_error() -> None:
    connection, reader = _connection()
    reading = FrameReading(connection)
    waiting = asyncio.create_task(reading.receive_frame())
    await asyncio.sleep(0)
    reader.feed_eof()
    with pytest.raises(OSError, match="closed"):
        await waiting


async def test_an_sdk_without_those_members_is_left_as_it_is() -> None:
    """So is the SDK's reading over a WebSocket, which has no stream reader."""
    for transport in (None, SimpleNamespace(receive_frame=None, reader=None), SimpleNamespace()):
        client = SimpleNamespace(_connection=SimpleNamespace(_transport=transport), do_work_async=None)
        take_over(client)
        assert client.do_work_async is None
        assert reading_of(SimpleNamespace(_handler=client)) is None
    assert reading_of(object()) is None
