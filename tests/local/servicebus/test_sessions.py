"""Sessions through the unmodified SDK over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from azure.servicebus import NEXT_AVAILABLE_SESSION, ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from azure.servicebus.exceptions import (
    OperationTimeoutError,
    ServiceBusError,
    SessionCannotBeLockedError,
    SessionLockLostError,
)

from batchflow.local.servicebus.server import ServiceBusServer

Seconds = Callable[[float], timedelta]


async def test_a_session_has_one_receiver_its_messages_and_its_state(
    client: ServiceBusClient, admin: ServiceBusAdministrationClient
) -> None:
    """Another receiver is refused; state is kept, renewal moves the lock; all can be listed."""
    await admin.create_queue("q", requires_session=True)
    async with (
        client.get_queue_sender("q") as sender,
        client.get_queue_receiver("q", session_id="a") as receiver,
    ):
        locked_until = receiver.session.locked_until_utc
        assert locked_until is not None
        assert abs(locked_until - datetime.now(UTC)) < timedelta(seconds=61)
        await sender.send_messages([ServiceBusMessage(f"{sid}", session_id=sid) for sid in ("b", "a")])
        (message,) = await receiver.receive_messages(1, max_wait_time=5)
        assert (str(message), message.session_id) == ("a", "a")
        with pytest.raises(SessionCannotBeLockedError):
            await client.get_queue_receiver("q", session_id="a").receive_messages(1, max_wait_time=5)
        assert await receiver.session.get_state() is None
        await receiver.session.set_state(b"\x00state")
        assert await receiver.session.get_state() == b"\x00state"
        assert await receiver.session.renew_lock() >= locked_until
        await receiver.complete_message(message)
        with pytest.raises(ServiceBusError, match="session id"):
            await sender.send_messages(ServiceBusMessage("no session"))
    assert [session async for session in client.list_queue_sessions("q")] == ["a", "b"]
    with pytest.raises(ServiceBusError, match="sessions"):
        await client.get_queue_receiver("q").receive_messages(1, max_wait_time=5)


async def test_any_session_is_waited_for(
    client: ServiceBusClient, admin: ServiceBusAdministrationClient
) -> None:
    """The attach is held back until a session has messages, or refused when none has in time."""
    await admin.create_queue("q", requires_session=True)

    async def receive_any() -> str:
        async with client.get_queue_receiver(
            "q", session_id=NEXT_AVAILABLE_SESSION, max_wait_time=10
        ) as receiver:
            (message,) = await receiver.receive_messages(1)
            await receiver.complete_message(message)
            return str(receiver.session.session_id)

    waiting = asyncio.create_task(receive_any())
    async with client.get_queue_sender("q") as sender:
        await sender.send_messages(ServiceBusMessage("x", session_id="late"))
    assert await waiting == "late"
    with pytest.raises(OperationTimeoutError):
        await client.get_queue_receiver(
            "q", session_id=NEXT_AVAILABLE_SESSION, max_wait_time=1
        ).receive_messages(1)


async def test_a_session_is_freed_by_close_by_a_dropped_connection_and_by_time(
    server: ServiceBusServer,
    client: ServiceBusClient,
    admin: ServiceBusAdministrationClient,
    seconds: Seconds,
) -> None:
    """Whoever comes next gets the session and the messages that were not settled."""
    await admin.create_queue("q", requires_session=True, lock_duration=seconds(2))
    async with client.get_queue_sender("q") as sender:
        await sender.send_messages(ServiceBusMessage("x", session_id="s"))
    async with client.get_queue_receiver("q", session_id="s") as receiver:
        await receiver.receive_messages(1, max_wait_time=5)
    async with client.get_queue_receiver("q", session_id="s") as receiver:
        (message,) = await receiver.receive_messages(1, max_wait_time=5)
        assert message.delivery_count == 0
        server.drop_connections()
        async with client.get_queue_receiver("q", session_id="s") as another:
            (message,) = await another.receive_messages(1, max_wait_time=5)
            with pytest.raises(SessionLockLostError):
                await another.receive_messages(1, max_wait_time=10)
            with pytest.raises(SessionLockLostError):
                await another.complete_message(message)
    async with client.get_queue_receiver("q", session_id="s") as receiver:
        (message,) = await receiver.receive_messages(1, max_wait_time=5)
        assert message.delivery_count == 1
        await receiver.complete_message(message)
