"""A local Service Bus on a free port, and the real SDK to talk to it."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.aio.management import ServiceBusAdministrationClient
from azure.servicebus.management import AccessRights, AuthorizationRule

from batchflow.local.http.internal_errors import InternalErrors
from batchflow.local.security.certificate import make_server_context
from batchflow.local.servicebus.server import ServiceBusServer


@pytest.fixture
def ca_file(tmp_path: Path) -> Path:
    """Where the certificate of the server's authority is."""
    return tmp_path / "ca.pem"


@pytest.fixture
def errors() -> InternalErrors:
    """What failed in the servers of a test."""
    return InternalErrors()


@pytest.fixture
async def start_server(
    ca_file: Path, errors: InternalErrors
) -> AsyncIterator[Callable[..., Awaitable[ServiceBusServer]]]:
    """Start a server with settings of one's own; it is closed after the test."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> ServiceBusServer:
            key = base64.b64encode(os.urandom(32)).decode()
            context = make_server_context(ca_file)
            server = ServiceBusServer(key=key, ssl_context=context, errors=errors, **settings)
            await server.start()
            stack.push_async_callback(server.aclose)
            return server

        yield start


@pytest.fixture
async def server(start_server: Callable[..., Awaitable[ServiceBusServer]]) -> ServiceBusServer:
    """A server with the default settings."""
    return await start_server()


@pytest.fixture
async def admin(server: ServiceBusServer, ca_file: Path) -> AsyncIterator[ServiceBusAdministrationClient]:
    """The administration client, which trusts the server's certificate."""
    async with ServiceBusAdministrationClient.from_connection_string(
        server.connection_string, connection_verify=str(ca_file), retry_total=0
    ) as client:
        yield client


@pytest.fixture
async def client(server: ServiceBusServer) -> AsyncIterator[ServiceBusClient]:
    """A client of the namespace's administrator, which does not retry."""
    async with ServiceBusClient.from_connection_string(
        server.connection_string, retry_total=0, socket_timeout=0.05
    ) as client:
        yield client


@pytest.fixture
def seconds() -> Callable[[float], timedelta]:
    """Durations, as the administration client takes them."""
    return lambda value: timedelta(seconds=value)


@pytest.fixture
def make_rule() -> Callable[..., AuthorizationRule]:
    """An authorization rule with fresh keys."""

    def make(name: str, *rights: AccessRights) -> AuthorizationRule:
        primary, secondary = (base64.b64encode(os.urandom(32)).decode() for _ in range(2))
        return AuthorizationRule(
            type="SharedAccessAuthorizationRule",
            claim_type="SharedAccessKey",
            claim_value="None",
            rights=list(rights),
            key_name=name,
            primary_key=primary,
            secondary_key=secondary,
        )

    return make


@pytest.fixture
def connect_as(server: ServiceBusServer) -> Callable[[str, str], ServiceBusClient]:
    """A client that has the name and a key of a rule."""

    def connect(name: str, key: str) -> ServiceBusClient:
        return ServiceBusClient.from_connection_string(
            f"Endpoint=sb://127.0.0.1:{server.port};SharedAccessKeyName={name};SharedAccessKey={key};"
            "UseDevelopmentEmulator=true",
            retry_total=0,
            socket_timeout=0.05,
        )

    return connect
