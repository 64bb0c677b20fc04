"""What a wrong setting looks like, and opening and closing in different asyncio tasks."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from batchflow import Client, Session, Settings
from batchflow.config.loader import load_settings
from batchflow.errors import (
    BrokerError,
    MailboxNotFound,
    PoolError,
    PoolNotFound,
    QueueNotFound,
    ServiceError,
    SessionClosed,
    StorageError,
)
from batchflow.pools.access import AGENT_RULE

PATIENCE = 20.0
"""Seconds within which a wrong setting must be told."""


@pytest.fixture
def settings(cloud_config: Path) -> Settings:
    return load_settings(cloud_config, environment={})


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses connections for as long as the test holds it unlistened."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture
def mute_port() -> Iterator[int]:
    """A port that takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def with_key(connection_string: str | None, name: str) -> str:
    """The connection string with another key, of the right form."""
    wrong = "AAAABBBBCCCCDDDDEEEEFFFFGGGGHHHHIIIIJJJJKKK="
    return re.sub(rf"{name}=[^;]+", f"{name}={wrong}", connection_string or "")


def with_port(text: str | None, port: int) -> str:
    return re.sub(r":\d+", f":{port}", text or "")


async def connect(settings: Settings) -> None:
    async with Client(settings) as client:
        pool = await client.ensure_pool("wrong")
        async with pool.session("wrong"):
            pass


async def fails(settings: Settings, kind: type[ServiceError], setting: str) -> None:
    """Opening a pool and a session by these settings ends in that error, naming that setting, in time."""
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        await connect(settings)
    assert caught.value.setting == setting, caught.value
    assert setting in str(caught.value)
    assert time.monotonic() - started < PATIENCE


async def test_wrong_batch_key_is_refused_by_its_setting(settings: Settings) -> None:
    """The error names the setting of a key that Batch does not know."""
    key = "AAAABBBBCCCCDDDDEEEEFFFFGGGGHHHHIIIIJJJJKKK="
    await fails(replace(settings, batch=replace(settings.batch, key=key)), PoolError, "batch.key")


async def test_wrong_storage_key_is_refused_by_its_setting(settings: Settings) -> None:
    """The error names the setting of a key that Storage does not know."""
    wrong = with_key(settings.storage.connection_string, "AccountKey")
    broken = replace(settings, storage=replace(settings.storage, connection_string=wrong))
    await fails(broken, StorageError, "storage.connection_string")


async def test_wrong_service_bus_key_is_refused_by_its_setting(settings: Settings) -> None:
    """The error names the setting of a key that Service Bus does not know."""
    wrong = with_key(settings.servicebus.connection_string, "SharedAccessKey")
    broken = replace(settings, servicebus=replace(settings.servicebus, connection_string=wrong))
    await fails(broken, BrokerError, "servicebus.connection_string")


async def test_unreachable_service_is_reported_in_time(settings: Settings, closed_port: int) -> None:
    """Each service is tried at an address where nothing answers."""
    batch = replace(settings.batch, url=with_port(settings.batch.url, closed_port))
    await fails(replace(settings, batch=batch), PoolError, "batch.url")
    text = with_port(settings.storage.connection_string, closed_port)
    storage = replace(settings.storage, connection_string=text)
    await fails(replace(settings, storage=storage), StorageError, "storage.connection_string")
    text = with_port(settings.servicebus.connection_string, closed_port)
    bus = replace(settings.servicebus, connection_string=text)
    await fails(replace(settings, servicebus=bus), BrokerError, "servicebus.connection_string")


async def test_silent_service_is_reported_as_unreachable(settings: Settings, mute_port: int) -> None:
    """The service takes connections and never answers."""
    batch = replace(settings.batch, url=with_port(settings.batch.url, mute_port))
    storage = replace(
        settings.storage, connection_string=with_port(settings.storage.connection_string, mute_port)
    )
    bus = replace(
        settings.servicebus, connection_string=with_port(settings.servicebus.connection_string, mute_port)
    )
    await asyncio.gather(
        fails(replace(settings, batch=batch), PoolError, "batch.url"),
        fails(replace(settings, storage=storage), StorageError, "storage.connection_string"),
        fails(replace(settings, servicebus=bus), BrokerError, "servicebus.connection_string"),
    )


async def test_key_that_may_only_send_cannot_open_a_session(settings: Settings, client: Client) -> None:
    """The error says which setting holds that key."""
    pool = await client.ensure_pool("rights")
    (queue,) = pool.runtime.manifest.results_queues
    restricted = await client.connections.admin.connection_string(queue.entity, AGENT_RULE)
    of_the_namespace = restricted.partition(";EntityPath=")[0]
    bus = replace(settings.servicebus, connection_string=of_the_namespace)
    async with Client(replace(settings, servicebus=bus)) as other:
        attached = await other.pool("rights")
        started = time.monotonic()
        with pytest.raises(BrokerError) as caught:
            await attached.session("restricted")
    assert caught.value.setting == "servicebus.connection_string"
    assert time.monotonic() - started < PATIENCE


async def test_opening_a_session_on_a_deleted_queue_names_the_queue(client: Client) -> None:
    """The error also says where the queue was looked for."""
    pool = await client.ensure_pool("gone", nodes=0)
    tasks, results = (*pool.runtime.manifest.task_queues, *pool.runtime.manifest.results_queues)
    for queue, kind in ((tasks, QueueNotFound), (results, MailboxNotFound)):
        await client.connections.admin.delete_queue(queue.entity)
        started = time.monotonic()
        with pytest.raises(kind, match=queue.entity) as caught:
            await pool.session("early")
        assert caught.value.setting == "servicebus.connection_string"
        assert str(caught.value).count("servicebus.connection_string") == 1
        assert time.monotonic() - started < PATIENCE
        await client.ensure_pool("gone")


async def test_attaching_to_a_missing_pool_is_refused(client: Client) -> None:
    """The error is `PoolNotFound`."""
    with pytest.raises(PoolNotFound, match="nowhere"):
        await client.pool("nowhere")


@pytest.fixture
async def opened_in_a_fixture(cloud_config: Path) -> AsyncIterator[Session]:
    """Opened in the set-up of a fixture and closed in its tear-down, which are different asyncio tasks."""
    client = await Client.from_config(cloud_config)
    pool = await client.ensure_pool("fixture", nodes=0)
    session = await pool.session("fixture")
    yield session
    await session.aclose()
    await client.aclose()


async def test_session_that_a_fixture_opened_works_in_its_test(opened_in_a_fixture: Session) -> None:
    """Fixture and test are two asyncio tasks."""
    task = await opened_in_a_fixture.submit("echo.py")
    await task.accepted()


async def test_session_opened_in_one_task_closes_in_another(cloud_config: Path) -> None:
    """Notebook cells are asyncio tasks of one loop: open in the first, close in the second."""
    cells: dict[str, Client | Session] = {}

    async def first() -> None:
        client = cells["client"] = await Client.from_config(cloud_config)
        cells["session"] = await (await client.ensure_pool("cells", nodes=0)).session()

    async def second() -> None:
        await cells["session"].aclose()
        await cells["client"].aclose()
        await cells["client"].aclose()

    await asyncio.create_task(first())
    await asyncio.create_task(second())
    assert cells["session"].closed


async def test_closing_a_session_resolves_what_waits(client: Client) -> None:
    """A waiting call raises `SessionClosed`."""
    pool = await client.ensure_pool("silent", nodes=0)
    session = await pool.session()
    task = await session.submit("echo.py")
    waiting = asyncio.create_task(task.outcome())
    await task.accepted()
    await session.aclose()
    with pytest.raises(SessionClosed):
        await waiting
    with pytest.raises(SessionClosed):
        await session.submit("echo.py")


async def test_a_clients_own_local_cloud_leaves_its_keys_in_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tasks are of the same user, and could read them."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with Client.local(nodes=1) as client:
        key = (client.settings.batch.key or "").encode()
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert files
        assert [path.name for path in files if key in path.read_bytes()] == []
