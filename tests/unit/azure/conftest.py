"""A local Service Bus with its faults at hand, and a broker on it."""

from __future__ import annotations

import base64
import gc
import secrets
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from batchflow.azure.servicebus import ServiceBusAdmin, ServiceBusBroker
from batchflow.local.security.certificate import make_server_context
from batchflow.local.servicebus.server import ServiceBusServer
from batchflow.ports.broker import QueueRef, QueueSpec

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


class Bus:
    """A local Service Bus, with the adaptors on it."""

    def __init__(self, server: ServiceBusServer, ca_file: Path) -> None:
        self.server = server
        self.ca_file = str(ca_file)
        self.admin = ServiceBusAdmin(server.connection_string, ca_file=self.ca_file)
        self.broker = ServiceBusBroker(server.connection_string)

    async def make(self, **options: object) -> QueueRef:
        name = f"q-{secrets.token_hex(4)}"
        assert await self.admin.create_queue(QueueSpec(name, **options))  # type: ignore[arg-type]
        return QueueRef(self.admin.namespace, name)

    async def active(self, queue: QueueRef) -> int:
        return (await self.admin.figures(queue.entity)).active


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Report what a test leaves open in that test. The SDK itself leaves errors behind in the log."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    ca_file = tmp_path_factory.mktemp("tls") / "ca.pem"
    return ca_file, make_server_context(ca_file)


@pytest_asyncio.fixture
async def bus(request: pytest.FixtureRequest, certificate: tuple[Path, ssl.SSLContext]) -> AsyncIterator[Bus]:
    """Its parameter, where it has one, is after how many seconds links without traffic are detached."""
    ca_file, context = certificate
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    server = ServiceBusServer(
        key=key, ssl_context=context, link_idle_timeout=getattr(request, "param", 600.0)
    )
    await server.start()
    bus = Bus(server, ca_file)
    yield bus
    await bus.broker.aclose()
    await bus.admin.aclose()
    await server.aclose()
