"""What the ports' tests run against: the doubles in memory, the local cloud, and a real account.

The real account takes part when the environment has its settings: BATCHFLOW_TEST_SERVICEBUS and
BATCHFLOW_TEST_STORAGE (connection strings), BATCHFLOW_TEST_BATCH_ACCOUNT, _KEY and _URL.
"""

from __future__ import annotations

import base64
import os
import secrets
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from batchflow.azure.batch import BatchCompute
from batchflow.azure.blob import BlobStorage
from batchflow.azure.servicebus import ServiceBusAdmin, ServiceBusBroker
from batchflow.ports.broker import QueueRef, QueueSpec
from batchflow.testing import MemoryBroker, MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from batchflow.ports.broker import Broker, BrokerAdmin
    from batchflow.ports.compute import Compute
    from batchflow.ports.storage import Storage

LOCK = {"memory": 1.0, "local": 5.0, "azure": 5.0}
"""Seconds of a lock in these tests: the least that Service Bus takes, less in memory."""

REAL = pytest.param("azure", marks=pytest.mark.azure)


def setting(name: str) -> str:
    """A setting of the real account, or a skip that names it."""
    value = os.environ.get(name)
    if not value:
        pytest.skip(f"no real account: {name} is not in the environment")
    return value


def new_key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


@pytest.fixture
def name() -> str:
    """A name that nothing else in the account has."""
    return f"conformance-{secrets.token_hex(6)}"


@dataclass(frozen=True)
class Queues:
    """A broker, its administration, and a place where queues can be made that go away after the test."""

    broker: Broker
    admin: BrokerAdmin
    made: list[str]
    lock: float

    async def make(self, **options: object) -> QueueRef:
        name = f"conformance-{secrets.token_hex(6)}"
        spec = QueueSpec(name, **{"lock_duration": self.lock, **options})  # type: ignore[arg-type]
        self.made.append(name)
        assert await self.admin.create_queue(spec)
        return QueueRef(self.admin.namespace, name)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["memory", "local", REAL])
async def queues(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Queues]:
    async with AsyncExitStack() as stack:
        broker, admin = await open_queues(request.param, stack, tmp_path_factory.mktemp("queues"))
        made: list[str] = []
        yield Queues(broker, admin, made, LOCK[request.param])
        for name in made:
            await admin.delete_queue(name)


async def open_queues(kind: str, stack: AsyncExitStack, directory: Path) -> tuple[Broker, BrokerAdmin]:
    if kind == "memory":
        broker = await stack.enter_async_context(MemoryBroker())
        return broker, broker
    connection_string, ca_file = await servicebus(kind, stack, directory)
    return (
        await stack.enter_async_context(ServiceBusBroker(connection_string)),
        await stack.enter_async_context(ServiceBusAdmin(connection_string, ca_file=ca_file)),
    )


async def servicebus(kind: str, stack: AsyncExitStack, directory: Path) -> tuple[str, str | None]:
    if kind == "azure":
        return setting("BATCHFLOW_TEST_SERVICEBUS"), None
    from batchflow.local.security.certificate import make_server_context
    from batchflow.local.servicebus.server import ServiceBusServer

    ca_file = directory / "ca.pem"
    server = ServiceBusServer(key=new_key(), ssl_context=make_server_context(ca_file))
    stack.push_async_callback(server.aclose)
    await server.start()
    return server.connection_string, str(ca_file)


@pytest_asyncio.fixture(params=["memory", "local", REAL])
async def storage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Storage]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield await stack.enter_async_context(MemoryStorage())
            return
        connection_string = await blob_service(request.param, stack, tmp_path_factory.mktemp("blobs"))
        yield await stack.enter_async_context(BlobStorage(connection_string))


async def blob_service(kind: str, stack: AsyncExitStack, directory: Path) -> str:
    if kind == "azure":
        return setting("BATCHFLOW_TEST_STORAGE")
    from batchflow.local.blob.server import BlobServer

    server = BlobServer(account="conformance", key=new_key(), root=directory)
    stack.push_async_callback(server.aclose)
    await server.start()
    return server.connection_string


@pytest_asyncio.fixture(params=["local", REAL])
async def compute(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Compute]:
    async with AsyncExitStack() as stack:
        if request.param == "azure":
            names = ("BATCHFLOW_TEST_BATCH_ACCOUNT", "BATCHFLOW_TEST_BATCH_KEY", "BATCHFLOW_TEST_BATCH_URL")
            account, key, url = (setting(name) for name in names)
        else:
            account, key, url = await batch_service(stack, tmp_path)
        yield await stack.enter_async_context(BatchCompute(account, key, url))


async def batch_service(stack: AsyncExitStack, directory: Path) -> tuple[str, str, str]:
    from batchflow.local.batch.core.samples import AutoscaleTiming
    from batchflow.local.batch.server import BatchServer

    key = new_key()
    timing = AutoscaleTiming(min_pause=1.0)  # as Azure's 30 s are, without the wait
    server = BatchServer(account="conformance", key=key, root=directory, timing=timing)
    stack.push_async_callback(server.aclose)
    await server.start()
    return "conformance", key, server.url
