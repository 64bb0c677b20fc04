"""The server's sockets: protocols told apart, faults, latency, hostile peers, opening and closing."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from azure.core.exceptions import HttpResponseError
from azure.servicebus import ServiceBusMessage
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from azure.servicebus.exceptions import ServiceBusServerBusyError

from batchflow.local.amqp.performatives import AMQP_HEADER
from batchflow.local.http.internal_errors import InternalErrors
from batchflow.local.security.sas import sign
from batchflow.local.servicebus.core.namespace import QueueSettings
from batchflow.local.servicebus.server import ServiceBusServer
from tests.support.waiting import eventually

StartServer = Callable[..., Awaitable[ServiceBusServer]]


async def hung_up(reader: asyncio.StreamReader) -> bool:
    """Wait until the server ends the connection, in whichever way."""
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
        return True


async def test_closing_is_idempotent_and_frees_the_port() -> None:
    """Also with connections open, also before it was opened."""
    server = ServiceBusServer(key="key")
    await server.aclose()
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(AMQP_HEADER)
    assert await reader.readexactly(8) == AMQP_HEADER
    await asyncio.gather(server.aclose(), server.aclose())
    assert await hung_up(reader)
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)


async def test_a_port_in_use_is_an_error_at_start(server: ServiceBusServer) -> None:
    """Told at once."""
    with pytest.raises(OSError, match="in use"):
        await ServiceBusServer(key="key").start(port=server.port)


@pytest.mark.parametrize(
    "junk", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01garbage", b"AMQP\x09", b"A" * 4_000]
)
async def test_junk_ends_its_connection_and_no_other(
    server: ServiceBusServer, client: ServiceBusClient, junk: bytes
) -> None:
    """Whatever a stranger sends, in whatever pieces, the others go on."""
    server.broker.create_queue("q", QueueSettings(), time.time())
    async with client.get_queue_sender("q") as sender:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(junk)
        writer.write_eof()
        assert await hung_up(reader)
        writer.close()
        await sender.send_messages(ServiceBusMessage("still here"))


async def test_amqp_is_also_spoken_inside_tls(server: ServiceBusServer, ca_file: Path) -> None:
    """On the same port, with the same certificate."""
    trust = ssl.create_default_context(cafile=str(ca_file))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=trust)
    writer.write(AMQP_HEADER)
    assert await reader.readexactly(8) == AMQP_HEADER
    writer.close()
    await writer.wait_closed()


async def test_a_dropped_connection_is_opened_again_by_the_sdk(
    server: ServiceBusServer, admin: ServiceBusAdministrationClient
) -> None:
    """Nothing that was accepted is lost."""
    await admin.create_queue("q")
    async with (
        ServiceBusClient.from_connection_string(server.connection_string, retry_backoff_factor=0.1) as client,
        client.get_queue_sender("q") as sender,
        client.get_queue_receiver("q") as receiver,
    ):
        await sender.send_messages(ServiceBusMessage("1"))
        server.drop_connections()
        await sender.send_messages(ServiceBusMessage("2"))
        bodies = set[str]()
        while len(bodies) < 2:
            for message in await receiver.receive_messages(2, max_wait_time=5):
                bodies.add(str(message))
                await receiver.complete_message(message)
        assert bodies == {"1", "2"}


async def test_throttling_is_told_and_passes(server: ServiceBusServer, client: ServiceBusClient) -> None:
    """Server-busy, code 50009; a receiver that waits gets its message afterwards."""
    server.broker.create_queue("q", QueueSettings(), time.time())
    async with client.get_queue_sender("q") as sender, client.get_queue_receiver("q") as receiver:
        server.throttle(0.3)
        with pytest.raises(ServiceBusServerBusyError, match="50009"):
            await sender.send_messages(ServiceBusMessage("x"))
        receiving = asyncio.create_task(receiver.receive_messages(1, max_wait_time=10))
        while True:
            try:
                await sender.send_messages(ServiceBusMessage("x"))
                break
            except ServiceBusServerBusyError:
                await asyncio.sleep(0.1)
        (message,) = await receiving
        await receiver.complete_message(message)


async def test_idle_links_are_reopened_by_the_sdk_without_anyone_noticing(start_server: StartServer) -> None:
    """Detached after the idle time; the next send or receive simply works."""
    server = await start_server(link_idle_timeout=1.6)
    server.broker.create_queue("q", QueueSettings(), time.time())
    async with (
        ServiceBusClient.from_connection_string(server.connection_string, retry_backoff_factor=0.1) as client,
        client.get_queue_sender("q") as sender,
    ):
        await sender.send_messages(ServiceBusMessage("1"))
        await eventually(lambda: not server.broker.peers)
        await sender.send_messages(ServiceBusMessage("2"))
        entity = server.broker.namespace.find("q")
        assert entity is not None
        assert entity.queue.counts.active == 2


async def test_latency_delays_every_answer_but_not_one_after_the_other(
    start_server: StartServer, ca_file: Path
) -> None:
    """Twenty requests at once take one latency, over AMQP and over HTTPS, and stay in order."""
    latency = 0.5
    server = await start_server(latency=latency)
    readers = []
    started = time.monotonic()
    for _ in range(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(AMQP_HEADER)
        readers.append((reader, writer))
    for reader, writer in readers:
        assert await reader.readexactly(8) == AMQP_HEADER
        assert time.monotonic() - started >= latency
        writer.close()
    assert time.monotonic() - started < 20 * latency
    async with ServiceBusAdministrationClient.from_connection_string(
        server.connection_string, connection_verify=str(ca_file)
    ) as admin:
        started = time.monotonic()
        await admin.create_queue("q")
        assert time.monotonic() - started >= latency


async def test_a_client_that_does_not_read_is_not_sent_more(
    server: ServiceBusServer, client: ServiceBusClient
) -> None:
    """The queue keeps what the socket does not take; another receiver is served meanwhile."""
    server.broker.create_queue("q", QueueSettings(), time.time())
    async with (
        client.get_queue_sender("q") as sender,
        client.get_queue_receiver("q", prefetch_count=1_000) as sleeper,
    ):
        for _ in range(40):
            await sender.send_messages(ServiceBusMessage(b"x" * 250_000))
        entity = server.broker.namespace.find("q")
        assert entity is not None
        assert entity.queue.has_ready(), "some of the ten megabytes wait here, not in buffers"
        async with client.get_queue_receiver("q") as other:
            (message,) = await other.receive_messages(1, max_wait_time=5)
            await other.complete_message(message)
        received = 0
        while received < 39:
            for message in await sleeper.receive_messages(50, max_wait_time=5):
                await sleeper.complete_message(message)
                received += 1


# -- strangers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
async def test_a_stranger_in_a_handshake_is_cut_off(start_server: StartServer, said: bytes) -> None:
    """One that says nothing, and one that begins TLS and does not go on."""
    server = await start_server(stranger_timeout=0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(said)
    assert await hung_up(reader)
    writer.close()


@pytest.mark.parametrize(
    "said", [b"", b"GET /q HTTP/1.1\r\nHost: x\r\n", b"GET /q HTTP/1.1\r\nHost: x\r\n\r\n"]
)
async def test_a_stranger_inside_tls_is_cut_off(
    start_server: StartServer, ca_file: Path, said: bytes
) -> None:
    """One that says nothing there, one that sends half of a request, and one whose request is refused."""
    server = await start_server(stranger_timeout=0.5)
    trust = ssl.create_default_context(cafile=str(ca_file))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=trust)
    writer.write(said)
    assert await hung_up(reader)
    writer.close()


async def test_an_administrator_stays(start_server: StartServer, ca_file: Path) -> None:
    """Beyond the time of strangers, once a request was authorized."""
    server = await start_server(stranger_timeout=0.3)
    async with ServiceBusAdministrationClient.from_connection_string(
        server.connection_string, connection_verify=str(ca_file), retry_total=0
    ) as admin:
        await admin.create_queue("q")
        await asyncio.sleep(0.4)
        assert (await admin.get_queue("q")).name == "q"


async def ask(server: ServiceBusServer, ca_file: Path, request: bytes) -> bytes:
    """Send bytes of HTTP inside TLS; return the first line of the answer."""
    trust = ssl.create_default_context(cafile=str(ca_file))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=trust)
    writer.write(request)
    async with asyncio.timeout(20):
        line = await reader.readline()
    writer.close()
    return line


_SHARED = b"Authorization: SharedAccessSignature "


@pytest.mark.parametrize(
    ("line", "headers"),
    [
        (b"GET /q\xff", b"Authorization: %s\r\n"),
        (b"GET /q", _SHARED + b"sr=\xed\xa0\x80&sig=a&se=9999999999&skn=a\r\n"),
        (b"GET /q", _SHARED + b"sr=a&sig=%ed%a0%80&se=" + b"9" * 300 + b"&skn=a\r\n"),
        (b"PUT /q", b"Transfer-Encoding: chunked\r\nAuthorization: %s\r\n\r\nzzz\r\n"),
        (b"PUT /q", b"Content-Length: 99999999999\r\nAuthorization: %s\r\n"),
        (b"GET /$Resources/queues?$top=1&$skip=" + b"9" * 4_299, b"Authorization: %s\r\n"),
    ],
    ids=["path", "surrogate", "expiry", "chunk", "length", "number"],
)
async def test_no_request_brings_about_an_error_of_the_server(
    server: ServiceBusServer, ca_file: Path, errors: InternalErrors, line: bytes, headers: bytes
) -> None:
    """Text that is none, numbers without end, bodies that are none: refused, and nothing is counted."""
    head = headers.replace(b"%s", _token(server).encode())
    request = line + b" HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n"
    answer = await ask(server, ca_file, request)
    assert answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4", b"HTTP/1.0 4")) or not answer, answer
    assert errors.count == 0


@pytest.mark.parametrize(
    "body",
    [
        b'<?xml version="1.0" encoding="utf-7"?><a/>',
        b'<?xml version="1.0" encoding="no-such"?><a/>',
        b'<!DOCTYPE a [<!ENTITY b "bbbb">]><a>&b;</a>',
        b"\xff\xfe<\x00a\x00/\x00>\x00",
        b"<a>" * 20_000,
        b"\xed\xa0\x80",
    ],
)
async def test_a_body_that_is_not_plain_xml_is_refused(
    server: ServiceBusServer, ca_file: Path, errors: InternalErrors, body: bytes
) -> None:
    """Another encoding, a document type, endless depth are no errors of the server."""
    head = f"Host: x\r\nAuthorization: {_token(server)}\r\nContent-Length: {len(body)}\r\n\r\n"
    answer = await ask(server, ca_file, b"PUT /q HTTP/1.1\r\n" + head.encode() + body)
    assert answer.split()[1] in (b"400", b"501")
    assert errors.count == 0


async def test_a_failure_is_answered_to_its_client_alone(
    server: ServiceBusServer,
    admin: ServiceBusAdministrationClient,
    errors: InternalErrors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With 500; it is counted, and the next request is served."""

    def fail(*arguments: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("batchflow.local.servicebus.admin.read_queue", fail)
        with pytest.raises(HttpResponseError) as caught:
            await admin.create_queue("q")
    assert caught.value.status_code == 500
    assert (errors.count, "ZeroDivisionError" in errors.last) == (1, True)
    await admin.create_queue("q")


def _token(server: ServiceBusServer) -> str:
    key = server.connection_string.partition("SharedAccessKey=")[2].partition(";")[0]
    resource, expiry = quote_plus(f"sb://127.0.0.1:{server.port}"), str(int(time.time()) + 60)
    signature = quote_plus(sign(key, resource, expiry).decode())
    return f"SharedAccessSignature sr={resource}&sig={signature}&se={expiry}&skn=RootManageSharedAccessKey"
