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


class Receiving:
    """What a reactor receives: it opens, begins, attaches and gives credit in one segment."""

    def __init__(self, server: ServiceBusServer, wanted: int, **credentials: Any) -> None:
        from proton.handlers import MessagingHandler

        self.bodies: list[Any] = []
        self.failed = ""
        outer = self

        class Handler(MessagingHandler):  # type: ignore[misc]
            def on_start(self, event: Any) -> None:
                url = f"127.0.0.1:{server.port}"
                connection = event.container.connect(url, reconnect=False, **credentials)
                event.container.create_receiver(connection, "q")
                self.timeout = event.container.schedule(20, self)

            def on_timer_task(self, event: Any) -> None:
                outer.failed = "nothing came"
                event.container.stop()

            def on_transport_error(self, event: Any) -> None:
                outer.failed = str(event.transport.condition)
                self.timeout.cancel()

            def on_message(self, event: Any) -> None:
                outer.bodies.append(event.message.body)
                if len(outer.bodies) == wanted:
                    self.timeout.cancel()
                    event.connection.close()

        self._handler = Handler()

    def run(self) -> None:
        from proton.reactor import Container

        Container(self._handler).run()


async def test_a_reactor_with_a_password_receives_what_there_is(server: ServiceBusServer) -> None:
    """As JMS does: the name and the key of a rule, no token, and credit in the segment of the attach."""
    server.broker.create_queue("q", QueueSettings(), time.time())
    key = server.connection_string.partition("SharedAccessKey=")[2].partition(";")[0]
    known = {
        "user": "RootManageSharedAccessKey",
        "password": key,
        "allowed_mechs": "PLAIN",
        "allow_insecure_mechs": True,
    }

    def send() -> None:
        from proton.utils import BlockingConnection

        connection = BlockingConnection(f"127.0.0.1:{server.port}", timeout=5, **known)
        sender = connection.create_sender("q")
        for message in (proton.Message(body="one"), proton.Message()):
            sender.send(message)
        connection.close()

    await asyncio.to_thread(send)
    receiving = Receiving(server, 2, **known)
    await asyncio.to_thread(receiving.run)
    assert (receiving.bodies, receiving.failed) == (["one", None], "")
    wrong = Receiving(server, 1, **known | {"password": "wrong"})
    await asyncio.to_thread(wrong.run)
    assert "amqp:unauthorized-access" in wrong.failed
