"""Pools that grow with their work and vanish without it, on a local cloud whose times are seconds."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from batchflow import Client, Pool, PoolSpec
from batchflow.config.loader import load_settings
from batchflow.errors import NoAgents
from tests.support.cloud import running_cloud
from tests.support.waiting import eventually

TASKS = Path(__file__).parent / "tasks"
BOOT, IDLE, INTERVAL = 1.0, 2.0, 3.0
"""Seconds that a node boots, that an agent stays, and between two evaluations of the formula."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration of a local cloud where nodes boot and agents leave within seconds."""
    file = tmp_path_factory.mktemp("elastic") / "cloud.toml"
    options = ("--nodes", "0", "--boot-time", str(BOOT), "--autoscale-interval", str(INTERVAL))
    with running_cloud(file, *options) as written:
        settings = load_settings(written, environment={})
        agent = replace(settings.agent, idle_exit=IDLE, heartbeat_interval=0.5)
        file.write_text(replace(settings, agent=agent).to_toml())
        yield file


@pytest.fixture
async def client(config: Path) -> AsyncIterator[Client]:
    async with Client.from_config(config) as client:
        yield client


@pytest.fixture
async def pool(client: Client) -> AsyncIterator[Pool]:
    """An elastic pool of up to three nodes, without any."""
    name = f"elastic-{uuid.uuid4().hex[:8]}"
    pool = await client.create_pool(PoolSpec(name, max_nodes=3, files=(str(TASKS),)))
    yield pool
    await pool.delete()


async def nodes(pool: Pool) -> int:
    return len(await pool.runtime.connections.compute.nodes(pool.id))


async def asked_for(pool: Pool) -> bool:
    return "1 asked for" in str(await pool.explain())


async def is_empty(pool: Pool) -> bool:
    return not await nodes(pool)


async def test_pool_grows_with_its_first_task_and_vanishes_after_its_last(pool: Pool) -> None:
    """An open session keeps no node; the explanation says what is waited for."""
    async with pool.session() as session:
        assert "0 nodes: no task waits" in str(await session.explain())
        assert await is_empty(pool)
        task = await session.submit("echo.py", "first")
        await eventually(lambda: nodes(pool), pause=0.05)
        await eventually(lambda: asked_for(pool), pause=0.05)
        assert await task == ["first"]
        await eventually(lambda: is_empty(pool), pause=0.2)
        assert await session.run("echo.py", "second") == ["second"]


async def test_killed_client_leaves_no_node_and_loses_no_task(pool: Pool, config: Path) -> None:
    """The agents finish what is queued, and leave; the formula lets their nodes go."""
    program = str(Path(__file__).with_name("elastic_client.py"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, program, str(config), pool.id, "8", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"flushed\n"
    await eventually(lambda: nodes(pool), pause=0.05)
    process.kill()
    await process.wait()
    killed_at = time.monotonic()
    await eventually(lambda: is_empty(pool), pause=0.2)
    assert time.monotonic() - killed_at < 40.0
    async with pool.session("mine") as session:
        async with asyncio.timeout(40.0):
            found = {result.task_id async for result in _some(session, 8)}
    assert found == {str(number) for number in range(8)}


async def _some(session, count: int):  # type: ignore[no-untyped-def]
    results = session.results(follow=True)
    for _ in range(count):
        yield await anext(results)


async def test_client_without_rights_on_batch_needs_one_that_has_them(pool: Pool, tmp_path: Path) -> None:
    """Alone it is told so at once; beside a session of a client with rights, its wish is carried out."""
    file = tmp_path / "guest.toml"
    file.write_text((await pool.client_settings()).to_toml())
    async with Client.from_config(file) as guest:
        found = await guest.pool(pool.id)
        async with found.session() as session:
            with pytest.raises(NoAgents, match="this client may not start nodes"):
                await asyncio.wait_for(session.run("echo.py", "alone"), 10.0)
