"""Who may do what: rules of queues and of the namespace, checked for each link and each request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from azure.core.credentials import AzureSasCredential
from azure.core.exceptions import ClientAuthenticationError
from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from azure.servicebus.exceptions import ServiceBusAuthenticationError, ServiceBusAuthorizationError
from azure.servicebus.management import AccessRights, AuthorizationRule

from batchflow.local.security.sas import sign
from batchflow.local.servicebus.server import ServiceBusServer

MakeRule = Callable[..., AuthorizationRule]
ConnectAs = Callable[[str, str], ServiceBusClient]


async def test_each_link_and_request_needs_its_right(
    client: ServiceBusClient,
    admin: ServiceBusAdministrationClient,
    make_rule: MakeRule,
    connect_as: ConnectAs,
) -> None:
    """Who may only send cannot receive, peek or look elsewhere; and the other way round."""
    sender_rule = make_rule("sender", AccessRights.SEND)
    listener_rule = make_rule("listener", AccessRights.LISTEN)
    await admin.create_queue("q", authorization_rules=[sender_rule, listener_rule])
    await admin.create_queue("other")
    async with connect_as("sender", str(sender_rule.primary_key)) as may_send:
        async with may_send.get_queue_sender("q") as sender:
            await sender.send_messages(ServiceBusMessage("x"))
        with pytest.raises(ServiceBusAuthorizationError, match="Listen"):
            await may_send.get_queue_receiver("q").receive_messages(1)
        with pytest.raises(ServiceBusAuthenticationError):
            await may_send.get_queue_sender("other").send_messages(ServiceBusMessage("x"))
    async with connect_as("listener", str(listener_rule.secondary_key)) as may_listen:
        async with may_listen.get_queue_receiver("q") as receiver:
            (message,) = await receiver.receive_messages(1, max_wait_time=5)
            await receiver.complete_message(message)
        with pytest.raises(ServiceBusAuthorizationError, match="Send"):
            await may_listen.get_queue_sender("q").send_messages(ServiceBusMessage("x"))


async def test_a_wrong_key_a_wrong_name_and_an_expired_token_are_told_apart_from_a_missing_right(
    server: ServiceBusServer, admin: ServiceBusAdministrationClient, connect_as: ConnectAs, ca_file: Path
) -> None:
    """All of them are failures to authenticate, over AMQP and over HTTPS."""
    await admin.create_queue("q")
    for name, key in (("RootManageSharedAccessKey", "wrong"), ("nobody", "wrong")):
        async with connect_as(name, key) as client:
            with pytest.raises(ServiceBusAuthenticationError):
                await client.get_queue_sender("q").send_messages(ServiceBusMessage("x"))
    resource = f"sb%3A%2F%2F127.0.0.1%3A{server.port}%2Fq"
    root_key = server.connection_string.partition("SharedAccessKey=")[2].partition(";")[0]
    signature = sign(root_key, resource, "1").decode().replace("+", "%2B").replace("=", "%3D")
    stale = f"SharedAccessSignature sr={resource}&sig={signature}&se=1&skn=RootManageSharedAccessKey"
    async with ServiceBusClient(
        f"127.0.0.1:{server.port}", AzureSasCredential(stale), use_tls=False, retry_total=0
    ) as client:
        with pytest.raises(ServiceBusAuthenticationError):
            await client.get_queue_sender("q").send_messages(ServiceBusMessage("x"))
    async with ServiceBusAdministrationClient.from_connection_string(
        server.connection_string.replace(root_key, "wrong"), connection_verify=str(ca_file)
    ) as stranger:
        with pytest.raises(ClientAuthenticationError):
            await stranger.get_queue("q")
