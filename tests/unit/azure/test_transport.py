"""HTTP goes the ways that the environment says, and asks it no more often than that takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from typing import Any

import pytest
import pytest_asyncio
from azure.core.exceptions import ServiceRequestError

from batchflow.azure.blob import BlobStorage
from batchflow.azure.errors import storage_error
from batchflow.azure.transport import proxies

ACCOUNT = "DefaultEndpointsProtocol=http;AccountName=a;AccountKey=a2V5;BlobEndpoint=http://127.0.0.1:{port}/a"
ANSWER = (
    b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nETag: "1"\r\nLast-Modified: Sat, 28 Nov 2026 00:00:00 GMT\r\n'
    b"Content-Range: bytes 0-1/2\r\n\r\nok"
)
PROXIES = [f"{kind}_proxy" for kind in ("http", "https", "all", "no")]


class Server:
    """Answers every request with a blob, and keeps the lines that it was asked with."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.port = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.asked.append(head.decode().splitlines()[0])
                writer.write(ANSWER)
                await writer.drain()


@pytest_asyncio.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    made = Server()
    async with await asyncio.start_server(made.answer, "127.0.0.1", 0) as listening:
        made.port = listening.sockets[0].getsockname()[1]
        yield made


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Whatever is given to another thread."""
    given = list[Any]()
    hand_over = asyncio.base_events.BaseEventLoop.run_in_executor

    def counted(self: Any, executor: Any, work: Any, *arguments: Any) -> Any:
        given.append(work)
        return hand_over(self, executor, work, *arguments)

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "run_in_executor", counted)
    return given


async def get_twice(storage: BlobStorage) -> None:
    container = storage.container("c")
    assert (await container.get("b")).data == b"ok"
    assert (await container.get("b")).data == b"ok"


async def test_no_thread_is_asked_where_there_is_no_proxy(server: Server, jobs: list[Any]) -> None:
    """Requests go straight to the service."""
    async with BlobStorage(ACCOUNT.format(port=server.port)) as storage:
        await get_twice(storage)
    assert [line.split()[1].startswith("/a/c/b") for line in server.asked] == [True, True]
    assert jobs == []


async def test_the_environments_proxy_is_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the requests whole."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.port}")
    async with BlobStorage(ACCOUNT.replace("127.0.0.1:{port}", "storage.example")) as storage:
        await get_twice(storage)
    assert all(line.startswith("GET http://storage.example/a/c/b") for line in server.asked)
    assert len(server.asked) == 2


async def test_where_no_proxy_is_wanted_none_is_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """`NO_PROXY` means what it does elsewhere."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with BlobStorage(ACCOUNT.format(port=server.port)) as storage:
        await get_twice(storage)
    assert len(server.asked) == 2


async def test_a_service_of_this_machine_is_asked_without_a_proxy(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy elsewhere does not reach a local cloud."""
    for name in PROXIES[:3]:
        monkeypatch.setenv(name.upper(), "http://proxy.example:1")
    for host in ("127.0.0.1", "localhost"):
        async with BlobStorage(ACCOUNT.replace("127.0.0.1", host).format(port=server.port)) as storage:
            await get_twice(storage)
    assert all(line.split()[1].startswith("/a/c/b") for line in server.asked)
    assert len(server.asked) == 4


def test_an_unreachable_proxy_is_told_from_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its setting is named, its password is not."""
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy.example:3128")
    refused = ServiceRequestError(
        "Cannot connect to host proxy.example:3128 ssl:default [Connect call failed]"
    )
    error = str(storage_error(refused, "cannot list"))
    assert "that is the proxy of HTTPS_PROXY" in error
    assert "secret" not in error
    refused = ServiceRequestError(
        "Cannot connect to host storage.example:443 ssl:default [Connect call failed]"
    )
    assert "HTTPS_PROXY" not in str(storage_error(refused, "cannot list"))


@pytest.mark.parametrize("value", ["localhost,127.0.0.1,::1", "localhost:8080,x"])
def test_hosts_without_a_proxy_and_a_proxy_without_a_port_do_not_hide_an_error(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """`NO_PROXY` names hosts and is no proxy. A proxy that cannot be read is aiohttp's to complain of."""
    for name in PROXIES:
        monkeypatch.setenv(name.upper(), value)
    refused = ServiceRequestError("Cannot connect to host storage.example:443 ssl:default [refused]")

    assert "storage.example:443" in str(storage_error(refused, "cannot list"))
    assert "no" not in proxies()
