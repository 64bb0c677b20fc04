"""Queues through the unmodified SDK over real sockets: sending, receiving, settling."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from azure.servicebus import (
    ServiceBusMessage,
    ServiceBusMessageState,
    ServiceBusReceiveMode,
    ServiceBusSubQueue,
)
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from azure.servicebus.exceptions import (
    MessageLockLostError,
    MessageNotFoundError,
    MessageSizeExceededError,
    MessagingEntityNotFoundError,
    ServiceBusError,
    ServiceBusQuotaExceededError,
)

from batchflow.local.servicebus.server import ServiceBusServer

Seconds = Callable[[float], timedelta]


async def test_a_message_arrives_as_it_was_sent(
    client: ServiceBusClient, admin: ServiceBusAdministrationClient
) -> None:
    """Body, properties, application properties and annotations pass through; the broker adds its own."""
    await admin.create_queue("q")
    sent = ServiceBusMessage(
        b"\x00body" * 30_000,
        message_id="id-1",
        subject="subject",
        content_type="application/json",
        correlation_id="correlation",
        reply_to="reply",
        session_id="just a label here",
        time_to_live=timedelta(hours=1),
        application_properties={"text": "tëxt", "number": 7, "truth": True},
    )
    before = datetime.now(UTC)
    async with client.get_queue_sender("q") as sender, client.get_queue_receiver("Q") as receiver:
        await sender.send_messages(sent)
        (got,) = await receiver.receive_messages(1, max_wait_time=5)
        assert b"".join(got.body) == b"\x00body" * 30_000
        assert (got.message_id, got.subject, got.content_type) == ("id-1", "subject", "application/json")
        assert (got.correlation_id, got.reply_to, got.session_id) == (
            "correlation",
            "reply",
            "just a label here",
        )
        assert got.time_to_live == timedelta(hours=1)
        assert got.application_properties == {b"text": "tëxt".encode(), b"number": 7, b"truth": True}
        assert (got.sequence_number, got.delivery_count, got.state) == (1, 0, ServiceBusMessageState.ACTIVE)
        assert got.enqueued_time_utc is not None
        assert abs(got.enqueued_time_utc - before) < timedelta(seconds=30)
        assert got.locked_until_utc is not None
        assert got.locked_until_utc - got.enqueued_time_utc > timedelta(seconds=59)
        await receiver.complete_message(got)
        assert await receiver.peek_messages(9, sequence_number=1) == []


async def test_every_way_to_settle(client: ServiceBusClient, admin: ServiceBusAdministrationClient) -> None:
    """Abandon, defer, dead-letter, renew, and the dead-letter queue with its reasons."""
    await admin.create_queue("q")
    async with (
        client.get_queue_sender("q") as sender,
        client.get_queue_receiver("q", prefetch_count=10) as receiver,
        client.get_queue_receiver("q", sub_queue=ServiceBusSubQueue.DEAD_LETTER) as dead_letters,
    ):
        await sender.send_messages([ServiceBusMessage(name) for name in ("a", "b", "c")])
        first, second, third = [(await receiver.receive_messages(1))[0] for _ in range(3)]
        assert first.message_id, "the broker names what the sender did not"
        locked_until = first.locked_until_utc
        renewed = await receiver.renew_message_lock(first)
        assert locked_until is not None
        assert renewed >= locked_until
        await receiver.dead_letter_message(second, reason="why", error_description="because")
        await receiver.defer_message(third)
        await receiver.abandon_message(first)
        (again,) = await receiver.receive_messages(1)
        assert (str(again), again.delivery_count) == ("a", 1)
        await receiver.complete_message(again)
        states = [message.state for message in await receiver.peek_messages(9, sequence_number=1)]
        assert states == [ServiceBusMessageState.DEFERRED]
        (deferred,) = await receiver.receive_deferred_messages([third.sequence_number or 0])
        assert deferred.delivery_count == 1
        await receiver.complete_message(deferred)
        with pytest.raises(MessageNotFoundError):
            await receiver.receive_deferred_messages([third.sequence_number or 0])
        (dead,) = await dead_letters.receive_messages(1, max_wait_time=5)
        assert (dead.dead_letter_reason, dead.dead_letter_error_description) == ("why", "because")
        await dead_letters.complete_message(dead)


async def test_a_message_that_fails_too_often_arrives_at_a_waiting_dead_letter_receiver(
    client: ServiceBusClient, admin: ServiceBusAdministrationClient
) -> None:
    """With the broker's reason."""
    await admin.create_queue("q", max_delivery_count=2)
    async with (
        client.get_queue_sender("q") as sender,
        client.get_queue_receiver("q") as receiver,
        client.get_queue_receiver("q", sub_queue=ServiceBusSubQueue.DEAD_LETTER, prefetch_count=1) as dead,
    ):
        await sender.send_messages(ServiceBusMessage("poison"))
        for _ in range(2):
            (message,) = await receiver.receive_messages(1, max_wait_time=5)
            await receiver.abandon_message(message)
        (dead_lettered,) = await dead.receive_messages(1, max_wait_time=5)
        assert dead_lettered.dead_letter_reason == "MaxDeliveryCountExceeded"
        await dead.complete_message(dead_lettered)


async def test_batches_and_receive_and_delete(
    client: ServiceBusClient, admin: ServiceBusAdministrationClient
) -> None:
    """A batch arrives whole and in order; deleting receives need no settlement."""
    await admin.create_queue("q")
    async with (
        client.get_queue_sender("q") as sender,
        client.get_queue_receiver("q", receive_mode=ServiceBusReceiveMode.RECEIVE_AND_DELETE) as receiver,
    ):
        batch = await sender.create_message_batch()
        assert batch.max_size_in_bytes == 262_144
        for index in range(100):
            batch.add_message(ServiceBusMessage(f"{index}", message_id=f"id-{index}"))
        await sender.send_messages(batch)
        got: list[str] = []
        while len(got) < 100:
            got += [str(message) for message in await receiver.receive_messages(100, max_wait_time=5)]
        assert got == [str(index) for index in range(100)]
        properties = await admin.get_queue_runtime_properties("q")
        assert properties.total_message_count == 0


async def test_scheduled_messages_come_in_their_time_or_never(
    client: ServiceBusClient, admin: ServiceBusAdministrationClient
) -> None:
    """A waiting receiver gets what was scheduled when it is due, and nothing that was cancelled."""
    await admin.create_queue("q")
    async with client.get_queue_sender("q") as sender, client.get_queue_receiver("q") as receiver:
        far = datetime.now(UTC) + timedelta(hours=1)
        due = datetime.now(UTC) + timedelta(seconds=0.6)
        numbers = await sender.schedule_messages([ServiceBusMessage("x"), ServiceBusMessage("y")], far)
        await sender.schedule_messages(ServiceBusMessage("soon"), due)
        assert len(numbers) == 2
        (peeked, *_) = await receiver.peek_messages(9, sequence_number=1)
        assert peeked.state == ServiceBusMessageState.SCHEDULED
        assert peeked.scheduled_enqueue_time_utc is not None
        assert abs(peeked.scheduled_enqueue_time_utc - far) < timedelta(seconds=1)
        assert (await admin.get_queue_runtime_properties("q")).scheduled_message_count == 3
        await sender.cancel_scheduled_messages(numbers)
        with pytest.raises(MessageNotFoundError):
            await sender.cancel_scheduled_messages(numbers)
        (message,) = await receiver.receive_messages(1, max_wait_time=10)
        assert str(message) == "soon"
        assert message.enqueued_time_utc is not None
        assert message.enqueued_time_utc >= due - timedelta(milliseconds=2)
        await receiver.complete_message(message)


async def test_duplicates_are_dropped_and_the_expired_are_dead_lettered(
    client: ServiceBusClient, admin: ServiceBusAdministrationClient, seconds: Seconds
) -> None:
    """Both by the settings of the queue."""
    await admin.create_queue(
        "q",
        requires_duplicate_detection=True,
        duplicate_detection_history_time_window=seconds(60),
        default_message_time_to_live=seconds(1),
        dead_lettering_on_message_expiration=True,
    )
    async with (
        client.get_queue_sender("q") as sender,
        client.get_queue_receiver("q", sub_queue=ServiceBusSubQueue.DEAD_LETTER, prefetch_count=9) as dead,
    ):
        for body in ("first", "second"):
            await sender.send_messages(ServiceBusMessage(body, message_id="same"))
        (message,) = await dead.receive_messages(9, max_wait_time=10)
        assert (str(message), message.dead_letter_reason) == ("first", "TTLExpiredException")
        await dead.complete_message(message)


async def test_a_lock_survives_its_connection_and_expires_in_its_time(
    server: ServiceBusServer, admin: ServiceBusAdministrationClient, seconds: Seconds
) -> None:
    """A dropped connection frees nothing; the settlement by another one still counts; time frees the rest."""
    await admin.create_queue("q", lock_duration=seconds(3))
    async with (
        ServiceBusClient.from_connection_string(server.connection_string, retry_backoff_factor=0.1) as client,
        client.get_queue_sender("q") as sender,
    ):
        await sender.send_messages([ServiceBusMessage("kept"), ServiceBusMessage("lost")])
        async with client.get_queue_receiver("q", prefetch_count=2) as receiver:
            kept, lost = [(await receiver.receive_messages(1))[0] for _ in range(2)]
            server.drop_connections()
            await receiver.complete_message(kept)
            (again,) = await receiver.receive_messages(1, max_wait_time=10)
            assert (str(again), again.delivery_count) == ("lost", 1)
            with pytest.raises(MessageLockLostError):
                await receiver.complete_message(lost)
            await receiver.complete_message(again)


async def test_what_is_too_large_too_much_or_nowhere_is_refused(
    client: ServiceBusClient, admin: ServiceBusAdministrationClient, server: ServiceBusServer
) -> None:
    """Each with the error that the SDK has for it, and the sender goes on."""
    await admin.create_queue("q")
    async with client.get_queue_sender("q") as sender:
        with pytest.raises(MessageSizeExceededError):
            await sender.send_messages(ServiceBusMessage(b"x" * 262_144))
        with pytest.raises(MessageSizeExceededError):
            await sender.send_messages([ServiceBusMessage(b"x" * 140_000)] * 2)
        entity = server.broker.namespace.find("q")
        assert entity is not None
        entity.queue.reconfigure(entity.settings.spec().__class__(max_size=1_000))
        with pytest.raises(ServiceBusQuotaExceededError):
            await sender.send_messages(ServiceBusMessage(b"x" * 1_000))
        await sender.send_messages(ServiceBusMessage(b"x"))
    with pytest.raises(MessagingEntityNotFoundError):
        await client.get_queue_sender("nowhere").send_messages(ServiceBusMessage("x"))
    with pytest.raises(MessagingEntityNotFoundError):
        await client.get_queue_receiver("nowhere").receive_messages(1)
    with pytest.raises(ServiceBusError, match="not part of the local Service Bus"):
        await client.get_subscription_receiver("topic", "subscription").receive_messages(1)


async def test_prefetched_messages_return_when_the_receiver_closes(
    client: ServiceBusClient, admin: ServiceBusAdministrationClient
) -> None:
    """The SDK drains and releases; nothing is counted and nothing stays locked."""
    await admin.create_queue("q")
    async with client.get_queue_sender("q") as sender:
        await sender.send_messages([ServiceBusMessage(str(index)) for index in range(5)])
    async with client.get_queue_receiver("q", prefetch_count=5) as receiver:
        (first,) = await receiver.receive_messages(1, max_wait_time=5)
        await receiver.complete_message(first)
    async with client.get_queue_receiver("q") as receiver:
        rest = await receiver.receive_messages(4, max_wait_time=5)
        assert [(str(message), message.delivery_count) for message in rest] == [
            (str(index), 0) for index in range(1, 5)
        ]
        for message in rest:
            await receiver.complete_message(message)
