"""Two clients at one pool, pools reset and found, agents that go when they are idle."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from azure.batch import models

from batchflow import Client, Pool, PoolSpec
from batchflow.errors import ConfigurationError, PoolNotFound, StartTaskFailed
from batchflow.local.faults import Faults
from batchflow.pools.pool_spec import start_command
from tests.e2e.test_pools import foreign_pool
from tests.support.waiting import eventually_equal

ECHO = {"echo.py": b"def do_action(engine, args):\n    return args\n"}
SLEEPY = {"sleepy.py": b"import time\ndef do_action(engine, args):\n    time.sleep(args[0])\n    return 7\n"}
ROUNDS = 6
PATIENCE = 30.0


@pytest.fixture
async def other(cloud_config: Path) -> AsyncIterator[Client]:
    """A second client of the same cloud."""
    async with Client.from_config(cloud_config) as client:
        yield client


async def test_two_clients_that_ensure_a_pool_share_it(client: Client, other: Client, name: str) -> None:
    """However their requests interleave there is one pool, with one pair of queues and of containers."""
    for number in range(ROUNDS):
        pool_id = f"{name}-{number}"
        first, second, third = await asyncio.gather(
            client.ensure_pool(pool_id, files=ECHO, nodes=0),
            other.ensure_pool(pool_id, files=ECHO, nodes=0),
            other.ensure_pool(pool_id, files=ECHO, nodes=0),
        )
        assert first.runtime.manifest == second.runtime.manifest == third.runtime.manifest
        assert sorted(pool.origin.choice for pool in (first, second, third)) == [
            "created",
            "reused",
            "reused",
        ]
        mine = [each for each in await client.connections.storage.containers("bf-") if f"-{number}-" in each]
        assert len([each for each in mine if name in each]) == 2
        there = await client.connections.admin.queues()
        queues = [each for each in there if each.startswith(f"bf-{pool_id}-")]
        assert len(queues) == 2
        await first.delete()


async def test_two_sessions_opened_at_once_start_one_agent_for_each_node(
    client: Client, other: Client, name: str
) -> None:
    """That holds also after agents of earlier times ended."""
    pool = await client.ensure_pool(name, files=ECHO, nodes=1)
    again = await other.ensure_pool(name)
    for _ in range(3):
        await asyncio.gather(*(each.start() for each in (pool, again, pool, again)))
        jobs = {each.runtime.manifest.agents_job for each in (pool, again)}
        assert len(jobs) == 1
        tasks = await client.connections.compute.tasks(jobs.pop())
        assert [task.id for task in tasks if task.state != "completed"] == ["agent-0"]
        await asyncio.gather(pool.stop(), again.stop())
    await pool.delete()


async def test_two_clients_that_delete_a_pool_delete_it_once(
    client: Client, other: Client, name: str
) -> None:
    """A pool that is ensured at the same moment is whole, or gone."""
    for number in range(ROUNDS):
        pool_id = f"{name}-{number}"
        await client.ensure_pool(pool_id, nodes=0)

        async def delete(by: Client, pool_id: str = pool_id) -> None:
            with contextlib.suppress(PoolNotFound):
                await by.delete_pool(pool_id)

        await asyncio.gather(delete(client), delete(other), other.ensure_pool(pool_id, nodes=0))
        pool = await client.ensure_pool(pool_id, files=ECHO, nodes=0)
        job = await pool.create_job("whole")
        await job.delete()
        await client.connections.admin.figures(pool.runtime.manifest.task_queues[0].entity)
        await client.connections.compute.pool(pool_id)
        await pool.delete()
        left = await client.connections.storage.containers(f"bf-{name}-{number}-")
        assert left == []


async def test_pool_of_an_interrupted_creator_is_taken_over(client: Client, other: Client, name: str) -> None:
    """A Batch pool that its maker left without a manifest is taken over, as batchflow's own."""
    pool = await client.ensure_pool(name, nodes=0)
    await client.connections.manifests.index.delete(f"pools/{name}.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("batchflow.pools.provisioning._CREATION_TIMEOUT", 0.2)
        taken = await other.ensure_pool(name)
    assert taken.runtime.manifest.owned
    assert taken.runtime.manifest.prefix != pool.runtime.manifest.prefix
    with pytest.raises(PoolNotFound, match="another one of that name"):
        await pool.start()
    await taken.delete()


async def test_pool_that_batch_lost_is_made_anew(client: Client, name: str) -> None:
    """The pool was deleted in the portal; ensuring it removes its remains and makes it again."""
    pool = await client.ensure_pool(name, nodes=0)
    await client.connections.compute.delete_pool(name)
    again = await client.ensure_pool(name, nodes=0)
    assert again.origin.choice == "created"
    assert await client.connections.storage.containers(pool.runtime.manifest.prefix) == []
    await again.delete()


async def test_ensuring_a_pool_tells_why_it_was_chosen(client: Client, name: str) -> None:
    """Create, reuse and repurpose are told apart, with what of the spec the pool does not have."""
    pool = await client.ensure_pool(name, files=ECHO, nodes=0)
    assert (pool.origin.choice, pool.origin.why) == ("created", "there was none of that name")
    spec = PoolSpec(name, vm_size="standard_d4s_v3", start_command="/bin/true")
    pool = await client.ensure_pool(name, files=ECHO, spec=spec)
    assert pool.origin.choice == "reused"
    assert "its VM size is standard_d2s_v3, not standard_d4s_v3" in pool.origin.why
    assert "its start task differs" in pool.origin.why
    pool = await client.ensure_pool(name, files={"other.py": b""})
    assert str(pool.origin) == "repurposed: other files than before; it is there"
    assert (await client.pool(name)).origin.choice == "attached"
    await pool.delete()


async def test_any_pool_with_nodes_is_found(client: Client, name: str) -> None:
    """A pool without nodes is not."""
    await client.ensure_pool(f"{name}-empty", nodes=0)
    pool = await client.ensure_pool(name, nodes=7)
    await eventually_equal(lambda: node_count(pool), 7)
    assert (await client.find_pool()).id == name
    await client.delete_pool(name)
    await client.delete_pool(f"{name}-empty")


async def node_count(pool: Pool) -> int:
    return len(await pool.nodes())


async def test_reset_boots_nodes_with_the_new_start_task(client: Client, name: str) -> None:
    """The nodes stay, and the work goes on."""
    pool = await client.ensure_pool(name, files=ECHO, nodes=2)
    async with pool.session() as session:
        await session.run("echo.py", "before")
        nodes = sorted(node.id for node in await pool.nodes())
        spec = PoolSpec(name, start_command="/bin/sh -c 'touch $AZ_BATCH_NODE_SHARED_DIR/installed'")
        await pool.repurpose(ECHO, reset=True, spec=spec)
        assert sorted(node.id for node in await pool.nodes()) == nodes
        assert await session.run("echo.py", "after") == ["after"]
    info = await client.connections.compute.pool(name)
    assert info.start_command == start_command(spec)
    await pool.delete()


async def test_reset_with_a_failing_start_task_stops_at_the_first_node(client: Client, name: str) -> None:
    """The error has the reason; the other nodes go on."""
    pool = await client.ensure_pool(name, files=ECHO, nodes=2)
    await pool.wait_ready(timeout=PATIENCE)
    spec = PoolSpec(name, start_command="/bin/sh -c 'echo no such package >&2; exit 1'")
    with pytest.raises(StartTaskFailed, match="no such package"):
        await pool.repurpose(ECHO, reset=True, spec=spec)
    states = sorted(node.state for node in await pool.nodes())
    assert states[1] == "starttaskfailed"
    assert states[0] in ("idle", "running")
    with pytest.raises(ConfigurationError, match="reset=True"):
        await pool.repurpose(ECHO, spec=spec)
    await pool.delete()


async def test_idle_agents_end_their_job(client: Client, name: str) -> None:
    """When the last agent goes, Batch ends the agents' job; the next session starts agents anew."""
    agent = replace(client.settings.agent, idle_exit=0.3)
    async with Client(replace(client.settings, agent=agent)) as impatient:
        pool = await impatient.ensure_pool(name, files=ECHO, nodes=1)
        async with pool.session() as session:
            assert await session.run("echo.py", "one") == ["one"]
        job = pool.runtime.manifest.agents_job
        await eventually_equal(lambda: job_state(impatient, job), "completed")
        async with pool.session() as session:
            assert await session.run("echo.py", "two") == ["two"]
        assert pool.runtime.manifest.agents_job != job
        await pool.delete()
        await eventually_equal(lambda: job_state(impatient, job), None)


async def job_state(client: Client, job: str) -> str | None:
    return await client.connections.compute._job_state(job)  # type: ignore[attr-defined, no-any-return]


async def test_work_of_a_lost_node_runs_on_another(client: Client, name: str) -> None:
    """No task is lost with the node."""
    pool = await client.ensure_pool(name, files=ECHO, nodes=2)
    async with pool.session() as session:
        await pool.wait_ready(timeout=PATIENCE)
        (lost, _) = sorted(node.id for node in await pool.nodes())
        await Faults(client.settings).lose(name, lost)
        await eventually_equal(lambda: agents_states(pool), ["active", "running"])
        assert [await session.run("echo.py", str(each)) for each in range(5)] == [[str(n)] for n in range(5)]
    await pool.delete()


async def agents_states(pool: Pool) -> list[str]:
    """The lost node's agent waits for another node: its processes are gone."""
    tasks = await pool.runtime.connections.compute.tasks(pool.runtime.manifest.agents_job)
    return sorted(task.state for task in tasks)


async def test_shrinking_a_pool_loses_no_task(client: Client, name: str) -> None:
    """An idle agent of a leaving node goes; a running task ends, or runs again elsewhere."""
    agent = replace(client.settings.agent, heartbeat_interval=0.3, drain_grace=1.0)
    async with Client(replace(client.settings, agent=agent)) as quick:
        pool = await quick.ensure_pool(name, files=SLEEPY, nodes=2)
        async with pool.session() as session:
            await pool.wait_ready(timeout=PATIENCE)
            tasks = await session.submit_many("sleepy.py", [2.5, 2.5])
            await eventually_equal(lambda: busy(pool), 2)
            await pool.resize(1)
            results = [await task.outcome() for task in tasks]
            assert [result.value for result in results] == [7, 7]
            assert len({result.node for result in results}) == 1
            await eventually_equal(lambda: node_count(pool), 1)
        await pool.delete()


async def busy(pool: Pool) -> int:
    return sum(node.running for node in await pool.nodes())


async def test_work_of_a_preempted_node_runs_again(client: Client, name: str) -> None:
    """The spot node comes back with its id and an empty disk; agent and task run again."""
    short = replace(client.settings.pool, lock_duration=5.0)
    async with Client(replace(client.settings, pool=short)) as quick:
        pool = await quick.ensure_pool(name, files=NAP_ONCE, spec=PoolSpec(name, nodes=0, spot=1))
        async with pool.session() as session:
            task = await session.submit("nap.py", args=str(uuid.uuid4()))
            await eventually_equal(lambda: busy(pool), 1)
            (before,) = await pool.nodes()
            assert not before.dedicated
            await Faults(client.settings).preempt(name, before.id)
            assert await task == "second time"
            (after,) = await pool.nodes()
            assert after.id == before.id
        await pool.delete()


NAP_ONCE = {
    "nap.py": b"""import pathlib, tempfile, time


def do_action(engine, args):
    mark = pathlib.Path(tempfile.gettempdir(), args[0])
    if mark.exists():
        mark.unlink()
        return "second time"
    mark.touch()
    time.sleep(600)
"""
}


async def test_agents_job_of_a_killed_client_is_ended_by_the_next(client: Client, name: str) -> None:
    """A client may die after it made the job and before Batch is told to end it."""
    await Faults(client.settings).slow_start(name, 3600.0)
    pool = await client.ensure_pool(name, files=ECHO, nodes=1)
    compute = client.connections.compute
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compute, "end_job_when_idle", die)
        with pytest.raises(RuntimeError, match="killed"):
            await pool.start()
    job = pool.runtime.manifest.agents_job
    await end_all_tasks(client, job)
    assert await job_state(client, job) == "active"
    await pool.start()
    assert pool.runtime.manifest.agents_job != job
    await eventually_equal(lambda: job_state(client, job), "completed")
    await pool.delete()


async def die(_: str) -> None:
    raise RuntimeError("killed")


async def end_all_tasks(client: Client, job: str) -> None:
    sdk = client.connections.compute._client  # type: ignore[attr-defined]
    for task in await client.connections.compute.tasks(job):
        await sdk.terminate_task(job, task.id)


async def test_deleting_all_pools_leaves_pools_that_batchflow_did_not_make() -> None:
    """That holds also where batchflow made its queues beside such a pool."""
    async with Client.local(nodes=1) as alone:
        sdk = alone.connections.compute._client  # type: ignore[attr-defined]
        for theirs in ("attached", "untouched"):
            await sdk.create_pool(foreign_pool(theirs))
        await alone.pool("attached")
        await alone.create_pool(PoolSpec("mine"))
        await alone.delete_all_pools()
        await eventually_equal(lambda: pool_ids(alone), ["attached", "untouched"])
        assert await alone.connections.storage.containers("bf-") == []
        assert await alone.connections.admin.queues() == []


async def test_deleting_all_pools_deletes_machines_without_a_manifest() -> None:
    """A killed client left them; the machines of another batchflow stay.

    Only manifests used to be looked at: machines that a killed maker left cost money, and nobody told.
    """
    async with Client.local(nodes=1) as alone:
        for name in ("half", "other"):
            pool = await alone.create_pool(PoolSpec(name, nodes=0))
            await alone.connections.manifests.index.delete(f"pools/{name}.json")
        sdk = alone.connections.compute._client  # type: ignore[attr-defined]
        theirs = foreign_pool("theirs")
        theirs.metadata = [
            models.BatchMetadataItem(name="batchflow", value="1"),
            models.BatchMetadataItem(name="batchflow-index", value="https://elsewhere.example/batchflow"),
        ]
        await sdk.create_pool(theirs)
        attached = await alone.pool("theirs")
        assert not attached.runtime.manifest.owned
        await alone.delete_pool("other")
        with pytest.raises(PoolNotFound):
            await alone.delete_pool("nowhere")
        await alone.delete_all_pools()
        await eventually_equal(lambda: pool_ids(alone), ["theirs"])
        with pytest.raises(PoolNotFound):
            await alone.delete_pool("theirs")
        await alone.sweep()
        assert await alone.connections.storage.containers(pool.runtime.manifest.prefix) == []
        assert await alone.connections.admin.queues() == []


async def pool_ids(client: Client) -> list[str]:
    return sorted([pool.id async for pool in client.connections.compute.pools()])
