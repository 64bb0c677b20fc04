"""Pools that grow with their work and vanish without it, on a local cloud whose times are seconds."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from batchflow import Budget, Client, Pool, PoolSpec
from batchflow.config.loader import load_settings
from batchflow.errors import NoAgents
from batchflow.pools.elastic.keepers import keeper_lives
from tests.support.cloud import running_cloud
from tests.support.waiting import eventually, within

TASKS = Path(__file__).parent / "tasks"
BOOT, IDLE, INTERVAL = 1.0, 1.0, 2.0
"""Seconds that a node boots, that an agent stays, and between two evaluations of the formula."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration of a local cloud where nodes boot and agents leave within seconds."""
    file = tmp_path_factory.mktemp("elastic") / "cloud.toml"
    options = ("--nodes", "0", "--boot-time", str(BOOT), "--autoscale-interval", str(INTERVAL))
    with running_cloud(file, *options) as written:
        settings = load_settings(written, environment={})
        agent = replace(settings.agent, idle_exit=IDLE, heartbeat_interval=0.5)
        locks = replace(settings.pool, lock_duration=5.0)
        file.write_text(replace(settings, agent=agent, pool=locks).to_toml())
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
        await eventually(lambda: asked_for(pool), pause=0.05)
        assert await task == ["first"]
        await eventually(lambda: is_empty(pool), pause=0.2)
        assert await session.run("echo.py", "second") == ["second"]


async def test_client_without_rights_on_batch_needs_one_that_has_them(pool: Pool, tmp_path: Path) -> None:
    """Alone it is told so at once; beside a session of a client with rights, its wish is carried out."""
    file = tmp_path / "guest.toml"
    file.write_text((await pool.client_settings()).to_toml())
    async with Client.from_config(file) as guest:
        found = await guest.pool(pool.id)
        async with found.session() as session:
            with pytest.raises(NoAgents, match="this client may not start nodes"):
                await asyncio.wait_for(session.run("echo.py", "alone"), 10.0)


async def test_wish_of_a_client_without_rights_is_carried_out_by_another(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has a session open and wants nothing itself."""
    monkeypatch.setattr("batchflow.sessions.scaling_watch._IDLE_LOOK", 0.5)
    monkeypatch.setattr("batchflow.sessions.scaling_watch._SERVED", 0.4)
    file = tmp_path / "guest.toml"
    file.write_text((await pool.client_settings()).to_toml())
    async with pool.session() as keeper, Client.from_config(file) as guest:
        found = await guest.pool(pool.id)
        await eventually(lambda: keeper_lives(pool.runtime.ctl), pause=0.05)
        async with found.session() as session:
            assert await within(session.run("echo.py", "helped")) == ["helped"]
        assert keeper.counts.submitted == 0


async def test_spent_budget_takes_the_pool_to_no_nodes(client: Client) -> None:
    """Its agents leave, and no client has to shrink it."""
    name = f"elastic-{uuid.uuid4().hex[:8]}"
    spec = PoolSpec(name, max_nodes=1, budget=Budget(node_hours=4 / 3600), files=(str(TASKS),))
    pool = await client.create_pool(spec)
    async with pool.session("poor") as session:
        tasks = await session.submit_many("sleeps.py", [0.5] * 20)
        outcomes = [await within(task.outcome()) for task in tasks]
        assert outcomes[0].ok
        assert {each.kind for each in outcomes if not each.ok} == {"BudgetExceeded"}
    await eventually(lambda: is_empty(pool), pause=0.2)
    assert (await pool.cost()).is_spent
    await pool.delete()


async def test_node_that_is_taken_costs_its_task_one_redelivery(pool: Pool, tmp_path: Path) -> None:
    """It runs again on another node, which the pool grows for."""
    runs = tmp_path / "runs"
    async with pool.session() as session:
        task = await session.submit("first_time_sleeps.py", str(runs))
        await eventually(runs.exists, pause=0.05)
        compute = pool.runtime.connections.compute
        (node,) = await compute.nodes(pool.id)
        await compute.remove_nodes(pool.id, [node.id])
        result = await within(task.outcome())
    assert result.value == 2
    assert result.attempts == ()
