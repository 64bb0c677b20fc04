"""The local Service Bus through uamqp, which older SDKs stand on: it comes by SASL's mechanism MSSBCBS."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from batchflow.local.servicebus.core.namespace import QueueSettings
from batchflow.local.servicebus.server import ServiceBusServer

uamqp = pytest.importorskip("uamqp", reason="uamqp is not installed: it has no wheels for newer Pythons")

ROOT = "RootManageSharedAccessKey"


def exchange(server: ServiceBusServer, ca_file: Path) -> list[bytes]:
    """Send two messages and receive them, each client with a connection of its own."""
    from uamqp.authentication import SASTokenAuth

    key = server.connection_string.partition("SharedAccessKey=")[2].partition(";")[0]
    address = "amqps://127.0.0.1/q"

    def known() -> Any:
        return SASTokenAuth.from_shared_access_key(address, ROOT, key, port=server.port, verify=str(ca_file))

    sender = uamqp.SendClient(address, auth=known())
    sender.queue_message(uamqp.Message(b"one"), uamqp.Message(b"two"))
    sender.send_all_messages()
    receiver, bodies = uamqp.ReceiveClient(address, auth=known(), timeout=20_000), []
    for message in receiver.receive_messages_iter():
        bodies.append(b"".join(message.get_data()))
        message.accept()
        if len(bodies) == 2:
            break
    receiver.close()
    return bodies


async def test_a_client_on_uamqp_sends_and_receives(server: ServiceBusServer, ca_file: Path) -> None:
    """Through TLS, with a token of its own for each connection."""
    server.broker.create_queue("q", QueueSettings(), time.time())
    assert await asyncio.to_thread(exchange, server, ca_file) == [b"one", b"two"]
    assert server.broker.namespace.entities["q"].queue.counts.active == 0
