"""Links whose token has expired work on: the SDK renews tokens while it works, and not while it is idle."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from batchflow.errors import LeaseLost
from tests.support.broker import message, next_of
from tests.unit.azure.test_servicebus_faults import finish_one, until_done

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.unit.azure.conftest import Bus


async def test_sender_whose_token_expired(bus: Bus) -> None:
    """It sends on, once more if need be."""
    queue = await bus.make()
    async with await bus.broker.sender(queue) as sender:
        await sender.send(message("a"))
        bus.server.expire_tokens()
        await until_done(lambda: sender.send(message("b")))
        bus.server.expire_tokens()
        await asyncio.sleep(0.2)
        await until_done(lambda: sender.send(message("c")))
    assert await bus.active(queue) == 3


async def test_receiver_whose_token_expired(bus: Bus) -> None:
    """While it waits, and while it holds something."""
    queue = await bus.make()
    async with await bus.broker.sender(queue) as sender, await bus.broker.receiver(queue) as receiver:
        waiting = asyncio.create_task(until_done(lambda: finish_one(receiver)))
        await asyncio.sleep(0.1)
        bus.server.expire_tokens()
        await until_done(lambda: sender.send(message("a")))
        await waiting
        await sender.send(message("b"))
        delivery = await next_of(receiver)
        bus.server.expire_tokens()
        await until_done(lambda: receiver.renew(delivery))
        await until_done(lambda: receiver.complete(delivery))
    assert await bus.active(queue) == 0


async def until_lost(work: Callable[[], Awaitable[object]]) -> None:
    """Do it until the news of the detaching was read."""
    async with asyncio.timeout(20):
        while True:
            await work()


@pytest.mark.parametrize("doing", ["receive", "renew", "get_state"])
async def test_mailbox_whose_token_expired(bus: Bus, doing: str) -> None:
    """It is lost, whatever one does with it, and another can be opened."""
    queue = await bus.make(sessions=True)
    mailbox = await bus.broker.mailbox(queue, "s")
    bus.server.expire_tokens()
    with pytest.raises(LeaseLost):
        await until_lost(lambda: mailbox.receive(1.0) if doing == "receive" else getattr(mailbox, doing)())
    await mailbox.aclose()
    async with await bus.broker.mailbox(queue, "s"):
        pass
