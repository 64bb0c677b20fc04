"""`python -m batchflow.local --entra FILE`: a cloud of its own for programs that come with roles."""

from __future__ import annotations

import shlex
import stat
from pathlib import Path

import pytest

from batchflow import Client
from batchflow.azure.batch import BatchCompute
from batchflow.azure.blob import BlobStorage
from batchflow.config.loader import load_settings
from batchflow.errors import BrokerError, StorageError
from batchflow.local.security.entra import BATCH_CONTRIBUTOR, BLOB_READER, ROLES
from batchflow.ports.broker import QueueSpec
from batchflow.settings import Settings
from tests.e2e.test_pools import ECHO, foreign_pool
from tests.local.test_launch import refusal
from tests.support.cloud import running_cloud


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "cloud.toml"


def logged_in(config: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """As a program reads them: the settings without keys, and the environment beside them."""
    entra = config.with_name("entra.toml")
    for path in (entra, entra.with_suffix(".env")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for line in entra.with_suffix(".env").read_text().splitlines():
        name, _, value = line.partition("=")
        monkeypatch.setenv(name, *shlex.split(value))
    return load_settings(entra, environment={})


async def test_program_without_keys_runs_a_task_by_its_roles(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program without keys runs a task on nodes without keys; nothing of the cloud's files stays."""
    entra = config.with_name("entra.toml")
    with running_cloud(config, "--entra", str(entra), "--identity", "managed"):
        settings = logged_in(config, monkeypatch)
        assert (settings.batch.key, settings.batch.entra) == (None, True)
        assert (settings.storage.connection_string, settings.servicebus.connection_string) == (None, None)
        async with Client(settings) as client:
            sdk = client.connections.compute._client  # type: ignore[attr-defined]
            await sdk.create_pool(foreign_pool("managed"))
            pool = await client.pool("managed")
            assert pool.runtime.manifest.identity is not None
            async with pool.session(files=ECHO) as session:
                assert await session.run("echo.py", "by role") == ["by", "role"]
        keyed = load_settings(config, environment={})
        async with Client(keyed) as client:
            assert [pool.id async for pool in client.pools()] == ["managed"]
    assert [path.name for path in config.parent.iterdir()] == []


async def test_roles_are_chosen(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has a role at one container reads that one and writes nothing; without any it is refused."""
    roles = ("--role", BATCH_CONTRIBUTOR, "--role", f"{BLOB_READER}@mine")
    with running_cloud(config, "--entra", str(config.with_name("entra.toml")), *roles):
        settings = logged_in(config, monkeypatch)
        storage = BlobStorage(load_settings(config, environment={}).storage.connection_string or "")
        async with storage, Client(settings) as client:
            for name in ("mine", "yours"):
                await storage.create_container(name)
                await storage.container(name).put("a", b"1")
            services = client.connections
            assert isinstance(services.compute, BatchCompute)
            assert [each async for each in services.compute.pools()] == []
            assert (await services.storage.container("mine").get("a")).data == b"1"
            with pytest.raises(StorageError, match="AuthorizationPermissionMismatch"):
                await services.storage.container("yours").get("a")
            with pytest.raises(StorageError, match="AuthorizationPermissionMismatch"):
                await services.storage.container("mine").put("a", b"2")
            with pytest.raises(BrokerError, match="role in Entra ID"):
                await services.admin.create_queue(QueueSpec("any"))


async def test_contradicting_options_are_refused(config: Path) -> None:
    """A role that there is none of is refused with those there are; roles are for a cloud with tokens."""
    entra = ("--config", str(config), "--entra", str(config.with_name("entra.toml")))
    status, (line,) = await refusal(*entra, "--role", "Owner")
    assert status == 2
    assert "'Owner' is not a role" in line
    assert all(role in line for role in ROLES)
    for options in (("--role", BLOB_READER), ("--identity", "p")):
        status, (line,) = await refusal("--config", str(config), *options)
        assert (status, "--entra FILE" in line) == (2, True)
    assert not config.exists()
