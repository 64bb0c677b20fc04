"""Links open as fast as the broker answers, and are read by one at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from azure.servicebus.aio import ServiceBusClient

from batchflow.azure.sdk_patches import QUESTIONS, tuned
from batchflow.errors import QueueNotFound
from batchflow.ports.broker import OutgoingMessage

NAP = 0.05
"""Seconds: the SDK's."""
REST = 1
"""Seconds: its keep-alive's."""


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Each sleep of that length, of whoever sleeps in this process."""
    taken, sleep = list[float](), asyncio.sleep

    async def counted(delay: float, result: Any = None) -> Any:
        if delay == NAP:
            taken.append(delay)
        return await sleep(delay, result)

    monkeypatch.setattr(asyncio, "sleep", counted)
    return taken


async def test_the_sdk_naps(bus, naps) -> None:
    """Left alone; should it no longer do so, that half of `batchflow.azure.sdk_patches` can go."""
    queue = await bus.make()
    async with (
        ServiceBusClient.from_connection_string(bus.server.connection_string) as client,
        client.get_queue_sender(queue.entity),
    ):
        assert len(naps) > 4


@pytest.mark.parametrize("kind", ["sender", "receiver", "mailbox"])
async def test_no_link_naps(bus, naps, kind) -> None:
    """Neither at first nor when it opens anew after a loss."""
    queue = await bus.make(sessions=kind == "mailbox")
    arguments = ["a mailbox"] if kind == "mailbox" else []
    async with await getattr(bus.broker, kind)(queue, *arguments) as end:
        assert naps == []
        if kind != "mailbox":  # which is lost with its link
            end._link._let_go(end._link._attached)
            await end._link.open()
            assert naps == []


async def test_an_open_link_is_the_sdks(bus) -> None:
    """What was put into it for its opening is gone: later the SDK asks whether it is ready, and goes on."""
    queue = await bus.make()
    async with await bus.broker.sender(queue) as sender:
        handler = await sender._link.open()
        assert "client_ready_async" not in vars(handler._handler)


async def test_a_refusal_stays_what_it_was(bus, naps) -> None:
    """Typed, and without naps as well."""
    queue = await bus.make()
    await bus.admin.delete_queue(queue.entity)
    with pytest.raises(QueueNotFound):
        await bus.broker.sender(queue)
    assert naps == []


class Unlike:
    """An SDK of some other day."""


class Never:
    """An end that opens like the SDK's, with a client that is never ready."""

    def __init__(self) -> None:
        self._handler: Any = None
        self.asked = 0

    def _create_handler(self, _authentication: object) -> None:
        self._handler = self.Client(self)

    class Client:
        def __init__(self, end: Never) -> None:
            self._end = end

        async def client_ready_async(self) -> bool:
            self._end.asked += 1
            return False


def test_an_sdk_without_those_names_opens_as_it_likes() -> None:
    """No error, and the same object."""
    end = Unlike()
    assert tuned(end) is end
    assert vars(end) == {}


async def test_a_client_that_is_never_ready_is_left_to_the_sdk() -> None:
    """Which naps, and looks at its deadline."""
    end = tuned(Never())
    end._create_handler(None)
    assert not await end._handler.client_ready_async()
    assert end.asked == QUESTIONS
    assert not await end._handler.client_ready_async()


class Looks:
    """The keep-alive's looks at a link: each is a task of its own."""

    def __init__(self, handler: Any) -> None:
        connection = handler._handler._connection
        self._listen = connection.listen
        connection.listen = self._counted
        self.number = 0

    async def _counted(self, *arguments: Any, **options: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        self.number += getattr(task.get_coro(), "__name__", "") == self._counted.__name__
        return await self._listen(*arguments, **options)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's keep-alive looks each second, which is as often as it can."""
    from azure.servicebus._pyamqp.aio import AMQPClientAsync

    made = AMQPClientAsync.__init__

    def make(self: Any, *arguments: Any, **options: Any) -> None:
        made(self, *arguments, **options | {"keep_alive_interval": 1})

    monkeypatch.setattr(AMQPClientAsync, "__init__", make)


async def test_the_sdk_reads_beside_a_receive(bus, hurried) -> None:
    """Left alone; should it no longer do so, that half of `batchflow.azure.sdk_patches` can go."""
    queue = await bus.make()
    async with (
        ServiceBusClient.from_connection_string(bus.server.connection_string) as client,
        client.get_queue_receiver(queue.entity) as receiver,
    ):
        looks = Looks(receiver)
        await receiver.receive_messages(max_message_count=1, max_wait_time=2.5)
        assert looks.number > 0


async def test_nobody_reads_beside_a_receive(bus, hurried) -> None:
    """Nor between two of them; when there is none any more the link is kept alive as ever."""
    queue = await bus.make()
    async with await bus.broker.receiver(queue) as receiver:
        looks = Looks(await receiver._link.open())
        for _ in range(3):
            assert await receiver.receive(0.8) is None
        assert looks.number == 0
        async with asyncio.timeout(30):
            while not looks.number:  # noqa: ASYNC110 - the SDK tells nobody
                await asyncio.sleep(0.05)


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Each sleep of the keep-alive's length that was slept to its end."""
    taken, sleep = list[float](), asyncio.sleep

    async def counted(delay: float, result: Any = None) -> Any:
        await sleep(delay)
        if delay == REST:
            taken.append(delay)
        return result

    monkeypatch.setattr(asyncio, "sleep", counted)
    return taken


async def test_the_sdk_waits_for_its_keep_alive(bus, rests) -> None:
    """Left alone; should it no longer do so, that part of `batchflow.azure.sdk_patches` can go."""
    queue = await bus.make()
    async with ServiceBusClient.from_connection_string(bus.server.connection_string) as client:
        async with client.get_queue_sender(queue.entity):
            assert rests == []
        assert rests == [REST]


async def test_nobody_waits_for_the_keep_alive(bus, rests) -> None:
    """Neither who closes nor whose connection was lost, and the link that comes after it is kept alive."""
    queue = await bus.make()
    async with await bus.broker.sender(queue) as sender:
        await sender.send(OutgoingMessage("a", b""))
        bus.server.drop_connections()
        await sender.send(OutgoingMessage("b", b""))
        assert rests == []
        handler = (await sender._link.open())._handler
        assert not handler._keep_alive_thread.done()
    assert rests == []
    assert handler._keep_alive_thread is None
