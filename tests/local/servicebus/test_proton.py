"""The local Service Bus through an AMQP client that has nothing to do with Azure: Apache Qpid Proton."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.parse import quote_plus

import pytest

from batchflow.local.security.sas import sign
from batchflow.local.servicebus.core.namespace import QueueSettings
from batchflow.local.servicebus.server import ServiceBusServer

proton = pytest.importorskip("proton", reason="python-qpid-proton is not installed")


def connect(server: ServiceBusServer, name: str) -> Any:
    """Open a connection and put a token on it, as any AMQP client has to."""
    from proton.utils import BlockingConnection

    connection = BlockingConnection(
        f"127.0.0.1:{server.port}", timeout=5, allowed_mechs="ANONYMOUS", heartbeat=1
    )
    resource, expiry = quote_plus(f"sb://127.0.0.1/{name}"), str(int(time.time()) + 60)
    key = server.connection_string.partition("SharedAccessKey=")[2].partition(";")[0]
    signature = quote_plus(sign(key, resource, expiry).decode())
    token = f"SharedAccessSignature sr={resource}&sig={signature}&se={expiry}&skn=RootManageSharedAccessKey"
    replies, requests = connection.create_receiver("$cbs"), connection.create_sender("$cbs")
    properties = {"operation": "put-token", "name": f"sb://127.0.0.1/{name}"}
    requests.send(proton.Message(id="1", body=token, properties=properties))
    assert replies.receive().properties["status-code"] == 202
    return connection


def exchange(server: ServiceBusServer) -> list[tuple[str, int]]:
    """Send three messages, one of them in many frames; complete, release and dead-letter them."""
    connection = connect(server, "q")
    sender = connection.create_sender("q")
    for index in range(3):
        sender.send(proton.Message(id=str(index), body="x" * (200_000 if index == 1 else 10)))
    receiver = connection.create_receiver("q", credit=10)
    seen = []
    for settle in (receiver.accept, receiver.release, receiver.accept, receiver.reject):
        message = receiver.receive(timeout=5)
        seen.append((message.id, len(message.body)))
        settle()
    dead_letters = connection.create_receiver("q/$DeadLetterQueue", credit=1)
    seen.append((dead_letters.receive(timeout=5).id, 0))
    dead_letters.accept()
    with pytest.raises(proton.Timeout):
        receiver.receive(timeout=2.5)
    with pytest.raises(proton.utils.LinkDetached, match="unauthorized"):
        connection.create_receiver("other")
    connection.close()
    return seen


async def test_an_independent_client_sends_receives_settles_and_is_kept_alive(
    server: ServiceBusServer,
) -> None:
    """It is strict about frames, windows and heartbeats where SDKs are not."""
    server.broker.create_queue("q", QueueSettings(), time.time())
    seen = await asyncio.to_thread(exchange, server)
    assert seen == [("0", 10), ("1", 200_000), ("2", 10), ("1", 200_000), ("1", 0)]
