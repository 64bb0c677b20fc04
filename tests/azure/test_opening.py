"""Links open as fast as the broker answers, and behave as the SDK's afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from azure.servicebus.aio import ServiceBusClient

from batchflow.azure.opening import QUESTIONS, without_naps
from batchflow.errors import QueueNotFound

NAP = 0.05
"""Seconds: the SDK's."""


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
    """Left alone; should it no longer do so, `batchflow.azure.opening` can go."""
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
    assert without_naps(end) is end
    assert vars(end) == {}


async def test_a_client_that_is_never_ready_is_left_to_the_sdk() -> None:
    """Which naps, and looks at its deadline."""
    end = without_naps(Never())
    end._create_handler(None)
    assert not await end._handler.client_ready_async()
    assert end.asked == QUESTIONS
    assert not await end._handler.client_ready_async()
