"""Pools of several task queues and results queues, in one namespace of Service Bus and over two."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from batchflow import Client, Pool, PoolSpec
from batchflow.errors import TaskCancelled
from batchflow.model import Status
from batchflow.protocol.layout import queue_for
from tests.support.cloud import running_cloud
from tests.support.session_parts import parts_of

TASKS = Path(__file__).parent / "tasks"


@pytest.fixture(scope="module", params=[1, 2], ids=["one namespace", "two namespaces"])
def cloud(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration file of a local cloud with so many namespaces."""
    config = tmp_path_factory.mktemp("cloud") / "cloud.toml"
    with running_cloud(config, "--namespaces", str(request.param)) as written:
        yield written


@pytest.fixture
async def client(cloud: Path) -> AsyncIterator[Client]:
    async with Client.from_config(cloud) as client:
        yield client


@pytest.fixture
async def pool(client: Client) -> Pool:
    """Two queues of each kind. Made once for each cloud."""
    return await client.ensure_pool("sharded", spec=PoolSpec("sharded", shards=2, files=(TASKS,)))


async def test_queues_are_spread_over_the_namespaces(client: Client, pool: Pool) -> None:
    """Each namespace has as many of either kind as were asked for."""
    manifest, services = pool.runtime.manifest, client.connections
    namespaces = {admin.namespace for admin in services.admins}
    for queues in (manifest.task_queues, manifest.results_queues):
        assert len(set(queues)) == 2
        assert {queue.namespace for queue in queues} == namespaces
    for queue in manifest.queues:
        assert (await services.admin_of(queue).figures(queue.entity)).dead == 0


async def test_tasks_use_every_queue_and_all_results_come_back(client: Client, pool: Pool) -> None:
    """The sessions have mailboxes in either results queue."""
    wanted = set(pool.runtime.manifest.results_queues)
    names: dict[object, str] = {}
    while len(names) < len(wanted):
        name = f"c-{uuid.uuid4().hex[:8]}"
        names.setdefault(queue_for(pool.runtime.manifest.results_queues, f"default/{name}"), name)
    for name in names.values():
        async with pool.session(name) as session:
            results = [result async for result in session.map("echo.py", range(600), ordered=True)]
            assert [result.value for result in results] == [[number] for number in range(600)]
            assert sorted(link.sent > 0 for link in parts_of(session).sender.links) == [True, True]


async def test_cancelling_ends_tasks_of_every_queue(pool: Pool) -> None:
    """Some of them run, and some wait."""
    async with pool.session() as session:
        tasks = [await session.submit("sleeps.py", "60") for _ in range(8)]
        await asyncio.gather(*(task.accepted() for task in tasks))
        await session.cancel_all()
        for task in tasks:
            with pytest.raises(TaskCancelled):
                await task
        assert await session.run("echo.py", "still", "there") == ["still", "there"]


async def test_next_session_of_the_name_gets_the_results_of_every_queue(
    client: Client, cloud: Path, pool: Pool
) -> None:
    """The session that submitted the tasks has ended."""
    name = f"again-{uuid.uuid4().hex[:8]}"
    async with pool.session(name) as session:
        for number in range(40):
            await session.submit("echo.py", args=[number])
        await session.flush()
    async with Client.from_config(cloud) as other:
        again = await other.pool("sharded")
        async with again.session(name) as session:
            found = {tuple(result.value) async for result in session.results() if result.value is not None}
    assert found == {(number,) for number in range(40)}


async def test_retried_task_returns_through_its_queue_and_queues_are_explained(pool: Pool) -> None:
    """A task that is handed back arrives again, and the explanation counts what the queues hold."""
    async with pool.session() as session:
        result = await (await session.submit("echo.py", "x")).outcome()
        assert result.status is Status.SUCCEEDED
        explanation = await session.explain()
        assert "queued" in explanation.facts


async def test_deleting_a_pool_removes_its_queues_in_every_namespace(client: Client) -> None:
    """No queue is left."""
    pool = await client.create_pool(PoolSpec("passing", shards=2, nodes=0))
    prefix = pool.runtime.manifest.prefix
    await pool.delete()
    for admin in client.connections.admins:
        assert not [name for name in await admin.queues() if name.startswith(prefix)]


async def test_guest_gets_a_key_for_each_queue(pool: Pool) -> None:
    """It uses the queues of every namespace."""
    await pool.wait_ready(1)
    async with Client(await pool.client_settings()) as other:
        attached = await other.pool("sharded")
        async with attached.session() as session:
            results = [result async for result in session.map("echo.py", range(50), ordered=True)]
            assert [result.value for result in results] == [[number] for number in range(50)]
            assert len(parts_of(session).sender.links) == 2
