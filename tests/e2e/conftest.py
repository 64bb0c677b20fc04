"""One local cloud for the whole run, a client, a pool and a session for each test."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from batchflow import Client, Pool, Session
from batchflow.config.loader import load_settings
from batchflow.settings import Settings
from tests.support.cloud import running_cloud

TASKS = Path(__file__).parent / "tasks"


@pytest.fixture(scope="session")
def cloud_config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration file of a local cloud that runs as a process of its own."""
    config = tmp_path_factory.mktemp("cloud") / "cloud.toml"
    with running_cloud(config, "--nodes", "2", "--slots", "1") as written:
        yield written


@pytest.fixture
def cloud_settings(cloud_config: Path) -> Settings:
    """The settings of a client of that cloud."""
    return load_settings(cloud_config)


@pytest.fixture
def name() -> str:
    """A name for a pool that no other test uses."""
    return f"pool-{uuid.uuid4().hex[:8]}"


@pytest.fixture
async def client(cloud_config: Path) -> AsyncIterator[Client]:
    async with Client.from_config(cloud_config) as client:
        yield client


@pytest.fixture
async def pool(client: Client) -> Pool:
    """The pool that all tests share; its agents stay warm between them."""
    return await client.ensure_pool("shared", files=[TASKS])


@pytest.fixture
async def session(pool: Pool) -> AsyncIterator[Session]:
    async with pool.session(f"test-{uuid.uuid4().hex[:8]}") as session:
        yield session
