"""Entra ID in place of keys, from one end to the other: no key in the settings, none on the nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from batchflow import Client, PoolSpec, Settings
from batchflow.azure.blob import CLOCK_SKEW, DELEGATION
from batchflow.errors import BrokerError, ConfigurationError, PoolError, StorageError
from batchflow.local.security.entra import (
    BATCH_CONTRIBUTOR,
    BLOB_CONTRIBUTOR,
    BLOB_READER,
    BUS_OWNER,
    BUS_RECEIVER,
    BUS_SENDER,
    Assignment,
)
from batchflow.local.server import LocalCloud
from batchflow.ports.broker import QueueSpec
from batchflow.protocol.documents import AgentConfig
from tests.e2e.test_pools import ECHO, foreign_pool

ROLES = {
    "me": (Assignment(BATCH_CONTRIBUTOR), Assignment(BUS_OWNER), Assignment(BLOB_CONTRIBUTOR)),
    "nodes": (Assignment(BUS_SENDER), Assignment(BUS_RECEIVER), Assignment(BLOB_CONTRIBUTOR)),
    "nobody": (),
    "no batch": (Assignment(BUS_OWNER), Assignment(BLOB_CONTRIBUTOR)),
    "no bus": (Assignment(BATCH_CONTRIBUTOR), Assignment(BLOB_CONTRIBUTOR)),
    "no writing": (Assignment(BATCH_CONTRIBUTOR), Assignment(BUS_OWNER), Assignment(BLOB_READER)),
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
    sdk = client.connections.compute._client  # type: ignore[attr-defined]
    tasks = [task async for task in sdk.list_tasks(job)]
    return [file.http_url for task in tasks for file in task.resource_files]


async def test_pool_with_a_managed_identity_runs_tasks_without_any_key(keyless: Settings) -> None:
    """Its agents are told names, and nothing is signed."""
    assert not [word for word in ("key", "SharedAccess") if word in keyless.to_toml().lower()]
    async with Client(keyless) as client:
        sdk = client.connections.compute._client  # type: ignore[attr-defined]
        await sdk.create_pool(foreign_pool(POOL))
        pool = await client.pool(POOL)
        assert pool.runtime.manifest.identity is not None
        async with pool.session(files=ECHO) as session:
            assert await session.run("echo.py", "no key") == ["no", "key"]
        configs = [info.name async for info in pool.runtime.ctl.list("agent/") if info.name.endswith(".json")]
        config = AgentConfig.decode((await pool.runtime.ctl.get(configs[0])).data)
        assert {access.connection_string for access in (*config.task_queues, *config.results_queues)} == {
            None
        }
        assert (config.ctl.signature, config.out.signature) == (None, None)
        urls = await resource_urls(client, pool.runtime.manifest.agents_job)
        assert not [url for url in urls if "?" in url]
        await pool.delete()


async def test_pool_without_an_identity_gives_its_agents_keys_and_lent_signatures(keyless: Settings) -> None:
    """Agents get the queues' keys, and signatures that Entra ID lent for a week."""
    async with Client(keyless) as client:
        pool = await client.ensure_pool("plain", files=ECHO, nodes=1)
        assert pool.runtime.manifest.identity is None
        async with pool.session() as session:
            assert await session.run("echo.py", "lent") == ["lent"]
        urls = await resource_urls(client, pool.runtime.manifest.agents_job)
        assert urls
        assert all("skoid=" in url for url in urls)
        await pool.delete()


async def test_agents_leave_before_their_lent_signatures_expire(
    keyless: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others start with new signatures, unasked."""
    async with Client(keyless) as client:
        pool = await client.ensure_pool("week", files=ECHO, nodes=1)
        with monkeypatch.context() as patch:
            patch.setattr("batchflow.pools.agent_launch._BEFORE_THE_END", DELEGATION - CLOCK_SKEW - 1.0)
            await pool.start()
        first = pool.runtime.manifest.agents_job
        async with asyncio.timeout(60):
            while not await all_ended(client, first):  # noqa: ASYNC110 - Batch can only be asked
                await asyncio.sleep(0.1)
        async with pool.session() as session:
            assert await session.run("echo.py", "next week") == ["next", "week"]
        assert pool.runtime.manifest.agents_job != first
        await pool.delete()


async def all_ended(client: Client, job: str) -> bool:
    return {task.state for task in await client.connections.compute.tasks(job)} == {"completed"}


async def test_user_without_a_role_is_refused_by_each_service(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the setting that is concerned."""
    for name, value in cloud.identity_environment("nobody").items():
        monkeypatch.setenv(name, value)
    async with Client(cloud.keyless_settings) as client:
        services = client.connections
        with pytest.raises(PoolError, match="PermissionDenied") as of_batch:
            await services.compute.pool("any")
        with pytest.raises(StorageError, match="AuthorizationPermissionMismatch") as of_storage:
            await services.storage.create_container("any")
        with pytest.raises(BrokerError, match="role in Entra ID") as of_bus:
            await services.admin.create_queue(QueueSpec("any"))
    settings = [caught.value.setting for caught in (of_batch, of_storage, of_bus)]
    assert settings == ["batch.entra", "storage.account_url", "servicebus.namespace"]


@pytest.mark.parametrize(
    ("who", "words"),
    [
        ("no batch", "Batch cannot be asked: cannot read pool plain: (PermissionDenied)"),
        ("no bus", "Service Bus cannot be asked: cannot read queue"),
        ("no writing", "Blob Storage cannot be asked: cannot write clock"),
    ],
)
async def test_explanation_names_the_service_whose_role_is_missing(
    cloud: LocalCloud, keyless: Settings, monkeypatch: pytest.MonkeyPatch, who: str, words: str
) -> None:
    """It names the service once, and the setting whose holder lacks the role; the other services are asked.

    A user without a role at Batch was also told that Blob Storage could not list Batch's tasks.
    """
    async with Client(keyless) as client:
        await client.create_pool(PoolSpec("plain", nodes=0))
    for name, value in cloud.identity_environment(who).items():
        monkeypatch.setenv(name, value)
    async with Client(keyless) as other:
        causes = (await (await other.pool("plain")).explain()).causes
    (refused,) = [cause for cause in causes if "cannot be asked" in cause.what]
    assert words in refused.what
    setting = {"no batch": "batch.entra", "no bus": "servicebus.namespace"}.get(who, "storage.account_url")
    assert f"check the setting {setting}" in refused.remedy
    assert "lack the right" in refused.remedy


async def test_failed_login_is_reported_as_a_missing_right(
    keyless: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The identity endpoint refuses, and each service reports it."""
    monkeypatch.setenv("IDENTITY_HEADER", "wrong")
    monkeypatch.setenv("PATH", "")
    async with Client(keyless) as client:
        with pytest.raises(PoolError) as of_batch:
            await client.connections.compute.pool("any")
        with pytest.raises(StorageError) as of_storage:
            await client.connections.storage.containers()
    assert [each.value.setting for each in (of_batch, of_storage)] == ["batch.entra", "storage.account_url"]


async def test_unknown_identity_is_refused_with_those_that_the_pool_has(keyless: Settings) -> None:
    """A pool that is not there gets none."""
    wrong = "00000000-0000-0000-0000-000000000000"
    async with Client(keyless) as client:
        sdk = client.connections.compute._client  # type: ignore[attr-defined]
        await sdk.create_pool(foreign_pool(POOL))
        with pytest.raises(ConfigurationError, match=rf"identity is '{wrong}'.*userAssignedIdentities/nodes"):
            await client.ensure_pool(POOL, spec=PoolSpec(POOL, identity=wrong))
        with pytest.raises(ConfigurationError, match="through Azure's management"):
            await client.create_pool(PoolSpec("new", identity=wrong))
        (identity,) = (await client.connections.compute.pool(POOL)).identities
        pool = await client.ensure_pool(POOL, spec=PoolSpec(POOL, identity=identity.client_id))
        assert pool.runtime.manifest.identity == identity
        await pool.delete()
