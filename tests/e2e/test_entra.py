"""Entra ID in place of keys, from one end to the other: no key in the settings, none on the nodes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from batchflow import Client, PoolSpec, Settings
from batchflow.control import AgentConfig
from batchflow.errors import BrokerError, ConfigurationError, PoolError, StorageError
from batchflow.local.entra import (
    BATCH_CONTRIBUTOR,
    BLOB_CONTRIBUTOR,
    BUS_OWNER,
    BUS_RECEIVER,
    BUS_SENDER,
    Assignment,
)
from batchflow.local.server import LocalCloud
from tests.e2e.test_pools import ECHO, foreign_pool

ROLES = {
    "me": (Assignment(BATCH_CONTRIBUTOR), Assignment(BUS_OWNER), Assignment(BLOB_CONTRIBUTOR)),
    "nodes": (Assignment(BUS_SENDER), Assignment(BUS_RECEIVER), Assignment(BLOB_CONTRIBUTOR)),
    "nobody": (),
}
POOL = "managed"


@pytest.fixture
async def cloud() -> AsyncIterator[LocalCloud]:
    """A local cloud where a pool of that name has a managed identity."""
    cloud = LocalCloud(nodes=1, roles=ROLES, identities={POOL: "nodes"})
    await cloud.start()
    yield cloud
    await cloud.aclose()


@pytest.fixture
def keyless(cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings without any key, in a process that is logged in."""
    for name, value in cloud.identity_environment("me").items():
        monkeypatch.setenv(name, value)
    return cloud.keyless_settings


async def resource_urls(client: Client, job: str) -> list[str]:
    sdk = client._services.compute._client  # type: ignore[attr-defined]
    tasks = [task async for task in sdk.list_tasks(job)]
    return [file.http_url for task in tasks for file in task.resource_files]


async def test_no_key_anywhere(keyless: Settings) -> None:
    """A task runs in a pool with a managed identity: its agents are told names, and nothing is signed."""
    assert not [word for word in ("key", "SharedAccess") if word in keyless.to_toml().lower()]
    async with Client(keyless) as client:
        sdk = client._services.compute._client  # type: ignore[attr-defined]
        await sdk.create_pool(foreign_pool(POOL))
        pool = await client.pool(POOL)
        assert pool._manifest.identity is not None
        async with pool.session(files=ECHO) as session:
            assert await session.run("echo.py", "no key") == ["no", "key"]
        configs = [info.name async for info in pool._ctl.list("agent/") if info.name.endswith(".json")]
        config = AgentConfig.decode((await pool._ctl.get(configs[0])).data)
        assert {access.connection_string for access in (*config.task_queues, *config.results_queues)} == {None}
        assert (config.ctl.signature, config.out.signature) == (None, None)
        assert not [url for url in await resource_urls(client, pool._manifest.agents_job) if "?" in url]
        await pool.delete()


async def test_a_pool_without_an_identity(keyless: Settings) -> None:
    """Where nodes have none, agents get the queues' keys, and signatures that Entra ID lent for a week."""
    async with Client(keyless) as client:
        pool = await client.ensure_pool("plain", files=ECHO, nodes=1)
        assert pool._manifest.identity is None
        async with pool.session() as session:
            assert await session.run("echo.py", "lent") == ["lent"]
        urls = await resource_urls(client, pool._manifest.agents_job)
        assert urls
        assert all("skoid=" in url for url in urls)
        await pool.delete()
