"""Administration through the unmodified client, over HTTPS on the port that messages go to."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from azure.servicebus.exceptions import MessagingEntityNotFoundError, ServiceBusError
from azure.servicebus.management import AccessRights, AuthorizationRule

MakeRule = Callable[..., AuthorizationRule]


async def test_a_queue_is_created_read_changed_and_deleted(
    admin: ServiceBusAdministrationClient, make_rule: MakeRule
) -> None:
    """All settings come back as they were given; names do not tell case apart."""
    rule = make_rule("agents", AccessRights.LISTEN, AccessRights.SEND)
    given: dict[str, Any] = {
        "requires_session": True,
        "requires_duplicate_detection": True,
        "duplicate_detection_history_time_window": timedelta(minutes=5),
        "lock_duration": timedelta(seconds=90),
        "max_delivery_count": 100,
        "default_message_time_to_live": timedelta(days=2, seconds=1.5),
        "dead_lettering_on_message_expiration": True,
        "max_size_in_megabytes": 2048,
        "auto_delete_on_idle": timedelta(hours=1),
        "user_metadata": "for <tests> & more",
    }
    created = await admin.create_queue("Pool-1/tasks", authorization_rules=[rule], **given)
    read = await admin.get_queue("pool-1/TASKS")
    for properties in (created, read):
        assert {name: getattr(properties, name) for name in given} == given
        (kept,) = properties.authorization_rules or []
        assert (kept.key_name, set(kept.rights or ())) == ("agents", {"Listen", "Send"})
        assert (kept.primary_key, kept.secondary_key) == (rule.primary_key, rule.secondary_key)
    read.lock_duration = timedelta(seconds=10)
    read.authorization_rules = []
    await admin.update_queue(read)
    changed = await admin.get_queue("Pool-1/tasks")
    assert changed.lock_duration == timedelta(seconds=10)
    assert not changed.authorization_rules
    assert changed.max_delivery_count == 100
    await admin.delete_queue("Pool-1/tasks")
    with pytest.raises(ResourceNotFoundError):
        await admin.get_queue("Pool-1/tasks")


async def test_queues_are_listed_page_by_page(admin: ServiceBusAdministrationClient) -> None:
    """In the order of their names."""
    names = [f"q{index}" for index in range(5)]
    for name in reversed(names):
        await admin.create_queue(name)
    assert [queue.name async for queue in admin.list_queues(max_page_size=2)] == names
    assert [queue.name async for queue in admin.list_queues_runtime_properties()] == names
    assert [topic async for topic in admin.list_topics()] == []
    assert (await admin.get_namespace_properties()).messaging_sku == "Standard"


async def test_the_figures_follow_the_messages_and_deletion_ends_the_links(
    admin: ServiceBusAdministrationClient, client: ServiceBusClient
) -> None:
    """Active and dead-lettered messages are counted; who still sends to a deleted queue is told."""
    await admin.create_queue("q")
    async with client.get_queue_sender("q") as sender:
        await sender.send_messages([ServiceBusMessage("a"), ServiceBusMessage("b")])
        async with client.get_queue_receiver("q") as receiver:
            (message,) = await receiver.receive_messages(1, max_wait_time=5)
            await receiver.dead_letter_message(message)
        figures = await admin.get_queue_runtime_properties("q")
        assert (figures.active_message_count, figures.dead_letter_message_count) == (1, 1)
        assert figures.size_in_bytes
        await admin.delete_queue("q")
        with pytest.raises(ServiceBusError):
            await sender.send_messages(ServiceBusMessage("c"))
        with pytest.raises(MessagingEntityNotFoundError):
            await sender.send_messages(ServiceBusMessage("c"))


@pytest.mark.parametrize(
    ("settings", "detail"),
    [
        ({"lock_duration": timedelta(minutes=6)}, "LockDuration"),
        ({"lock_duration": "P1M"}, "ISO 8601"),
        ({"max_delivery_count": 0}, "MaxDeliveryCount"),
        ({"max_size_in_megabytes": 7}, "MaxSizeInMegabytes"),
        ({"auto_delete_on_idle": timedelta(minutes=1)}, "AutoDeleteOnIdle"),
        ({"forward_to": "elsewhere"}, "ForwardTo"),
        ({"enable_partitioning": True}, "EnablePartitioning"),
    ],
)
async def test_settings_out_of_range_are_refused(
    admin: ServiceBusAdministrationClient, settings: dict[str, object], detail: str
) -> None:
    """With a text that names the setting."""
    with pytest.raises(HttpResponseError, match=detail):
        await admin.create_queue("q", **settings)  # type: ignore[arg-type]


async def test_what_exists_is_missing_or_ill_named_is_refused(
    admin: ServiceBusAdministrationClient, make_rule: MakeRule
) -> None:
    """With the errors that the client has for it."""
    queue = await admin.create_queue("q")
    with pytest.raises(ResourceExistsError):
        await admin.create_queue("Q")
    with pytest.raises(HttpResponseError, match="valid name"):
        await admin.create_queue("-q")
    with pytest.raises(HttpResponseError, match="topics are not"):
        await admin.create_topic("t")
    with pytest.raises(ResourceNotFoundError):
        await admin.delete_queue("missing")
    queue.requires_session = True
    with pytest.raises(HttpResponseError, match="RequiresSession"):
        await admin.update_queue(queue)
    with pytest.raises(HttpResponseError, match="Manage"):
        await admin.create_queue("r", authorization_rules=[make_rule("m", AccessRights.MANAGE)])
    short = make_rule("s", AccessRights.SEND)
    short.primary_key = "short"
    with pytest.raises(HttpResponseError, match="256 bits"):
        await admin.create_queue("r", authorization_rules=[short])
