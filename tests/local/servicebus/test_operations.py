"""What the local Service Bus counts of what the real SDK does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.aio.management import ServiceBusAdministrationClient

from batchflow.errors import BrokerError, ConfigurationError
from batchflow.local.servicebus.core.operations import Operations
from batchflow.local.servicebus.server import ServiceBusServer
from batchflow.local.usage import operations
from batchflow.settings import ServiceBusSettings, Settings


@pytest.fixture
def settings(server: ServiceBusServer, ca_file: Path) -> Settings:
    """Of a cloud that consists of this server."""
    bus = ServiceBusSettings(connection_string=server.connection_string, ca_file=str(ca_file))
    return Settings(target="local", servicebus=bus)


async def test_every_way_of_an_operation_counts(
    admin: ServiceBusAdministrationClient, client: ServiceBusClient, settings: Settings
) -> None:
    """Sending, receiving, settling, renewing, peeking; one message of a batch like one that is alone."""
    await admin.create_queue("work")
    assert await operations(settings) == Operations()
    async with client.get_queue_sender("work") as sender:
        await sender.send_messages([ServiceBusMessage(b"one"), ServiceBusMessage(b"two")])
    async with client.get_queue_receiver("work") as receiver:
        (message,) = await receiver.receive_messages(max_message_count=1)
        await receiver.renew_message_lock(message)
        await receiver.complete_message(message)
        await receiver.peek_messages(max_message_count=1)
    found = await operations(settings)
    assert replace(found, bytes=0) == Operations(sent=2, received=2, settled=1, requests=2)
    assert (found.credits, found.billed) == (4, 7)
    assert found.bytes > 0


async def test_a_large_message_is_billed_by_its_parts(
    admin: ServiceBusAdministrationClient, client: ServiceBusClient, settings: Settings
) -> None:
    """Of 64 KB; it takes one credit all the same."""
    await admin.create_queue("work")
    async with client.get_queue_sender("work") as sender:
        await sender.send_messages(ServiceBusMessage(bytes(150_000)))
    found = await operations(settings)
    assert (found.credits, found.billed) == (1, 3)


async def test_only_its_manager_is_told(settings: Settings) -> None:
    """Another key is refused, and what is no local cloud is not asked."""
    key = (settings.servicebus.connection_string or "").replace("SharedAccessKey=", "SharedAccessKey=A")
    stranger = replace(settings, servicebus=replace(settings.servicebus, connection_string=key))
    with pytest.raises(BrokerError, match="signature"):
        await operations(stranger)
    with pytest.raises(ConfigurationError, match="local cloud"):
        await operations(replace(settings, target="azure"))


def test_what_came_between_is_a_difference() -> None:
    """And a sum undoes it."""
    earlier, later = Operations(1, 2, 3, 4, 5, 6), Operations(10, 20, 30, 40, 50, 60)
    assert later - earlier == Operations(9, 18, 27, 36, 45, 54)
    assert later - earlier + earlier == later
