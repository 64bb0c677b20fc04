"""Pools and jobs: made, found again, repurposed, left alone, removed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from azure.batch import models
from azure.batch.aio import BatchClient
from azure.core.credentials import AzureNamedKeyCredential

from batchflow import Client, PoolSpec
from batchflow.errors import (
    ConfigurationError,
    JobClosed,
    JobExists,
    JobNotFound,
    PoolExists,
    PoolNotFound,
    SessionClosed,
)
from batchflow.local.faults import Faults

ECHO = {"echo.py": b"def do_action(engine, args):\n    return args\n"}
NAP = {
    "nap.py": (
        b"import time\n"
        b"def do_action(engine, args):\n"
        b"    engine.log('napping')\n"
        b"    time.sleep(args[0])\n"
        b"    return args[0]\n"
    )
}
SHOUT = {"shout.py": b"def do_action(engine, args):\n    return [word.upper() for word in args]\n"}


async def containers(client: Client) -> list[str]:
    return await client.connections.storage.containers("bf-")


async def test_a_pool_is_made_once(client: Client, name: str) -> None:
    """Making a pool twice is refused; ensuring it twice is one pool."""
    await client.create_pool(PoolSpec(name, nodes=0))
    with pytest.raises(PoolExists, match=name):
        await client.create_pool(PoolSpec(name, nodes=0))
    again = await client.ensure_pool(name, nodes=0)
    assert [pool.id async for pool in client.pools() if pool.id == name] == [name]
    await again.delete()


async def test_a_pool_is_repurposed_while_it_runs(client: Client, name: str) -> None:
    """New files reach the sessions opened from then on, on the same nodes."""
    pool = await client.ensure_pool(name, files=ECHO, nodes=1)
    async with pool.session() as session:
        assert await session.run("echo.py", "a b") == ["a", "b"]
        nodes = [node.id for node in await pool.nodes()]
    pool = await client.ensure_pool(name, files=SHOUT)
    async with pool.session() as session:
        assert await session.run("shout.py", "a b") == ["A", "B"]
        assert [node.id for node in await pool.nodes()] == nodes
    await pool.delete()


async def test_an_existing_pool_is_left_as_it_is(client: Client, name: str) -> None:
    """A pool that somebody else made works, and its document is the same before and after, whole.

    So is every node's, but for what the tasks on it change by themselves.
    """
    batch = client.settings.batch
    credential = AzureNamedKeyCredential(batch.account or "", batch.key or "")
    theirs = foreign_pool(name)
    theirs.start_task = models.BatchStartTask(
        command_line="/bin/sh -c 'echo $WHO'",
        environment_settings=[models.EnvironmentSetting(name="WHO", value="somebody else")],
        wait_for_success=True,
    )
    async with BatchClient(batch.url or "", credential) as sdk:
        await sdk.create_pool(theirs)
        before = await at_rest(sdk, name)
        (node,) = [each async for each in sdk.list_nodes(name)]
        pool = await client.pool(name)
        async with pool.session(files=ECHO) as session:
            assert await session.run("echo.py", "here") == ["here"]
        found = await client.ensure_pool(name, files=ECHO, spec=PoolSpec(name, start_command="/bin/true"))
        assert found.origin.choice in ("reused", "repurposed")
        await pool.stop()
        await pool.delete()
        assert (await sdk.get_pool(name)).as_dict() == before
        (after,) = [each async for each in sdk.list_nodes(name)]
        assert (after.id, after.last_boot_time) == (node.id, node.last_boot_time)
        assert after.start_task_info == node.start_task_info
        await sdk.begin_delete_pool(name)


async def at_rest(sdk: BatchClient, name: str) -> dict[str, Any]:
    """The pool's document when all its nodes have booted."""
    async with asyncio.timeout(30):
        while {node.state async for node in sdk.list_nodes(name)} != {"idle"}:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        while (pool := await sdk.get_pool(name)).allocation_state != "steady":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return pool.as_dict()


def foreign_pool(name: str) -> models.BatchPoolCreateOptions:
    image = models.BatchVmImageReference(publisher="canonical", offer="ubuntu-24_04-lts", sku="server")
    machine = models.VirtualMachineConfiguration(
        image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04"
    )
    return models.BatchPoolCreateOptions(
        id=name,
        vm_size="standard_d2s_v3",
        virtual_machine_configuration=machine,
        target_dedicated_nodes=1,
        task_slots_per_node=2,
        metadata=[models.BatchMetadataItem(name="owner", value="somebody else")],
    )


async def test_deleting_a_pool_leaves_nothing(client: Client, name: str) -> None:
    """Queues, containers, documents and machines go with the pool; its sessions are told."""
    before = set(await containers(client))
    pool = await client.ensure_pool(name, files=ECHO, nodes=1)
    session = await pool.session()
    assert len(set(await containers(client)) - before) == 2
    await client.delete_pool(name)
    assert set(await containers(client)) <= before
    queues = await client.connections.admin.queues()
    assert not [queue for queue in queues if queue.startswith(pool.runtime.manifest.prefix)]
    with pytest.raises(SessionClosed, match="deleted"):
        await session.submit("echo.py")
    with pytest.raises(PoolNotFound):
        await client.pool(name)
    with pytest.raises(PoolNotFound):
        await client.delete_pool(name)


async def test_resizing_brings_agents_to_new_nodes(client: Client, name: str) -> None:
    """A pool that grows gets an agent on each new node."""
    pool = await client.ensure_pool(name, files=ECHO, nodes=1)
    async with pool.session() as session:
        await session.run("echo.py")
        await pool.resize(2)
        await pool.wait_ready(2, timeout=30)
        assert sorted(node.agent or "" for node in await pool.nodes()) == ["ready", "ready"]
    await pool.delete()


async def test_stopped_agents_are_started_by_the_next_session(client: Client, name: str) -> None:
    """What was queued while nobody ran is done by the agents that the next session starts."""
    pool = await client.ensure_pool(name, files=ECHO, nodes=1)
    async with pool.session() as session:
        await session.run("echo.py")
    await pool.stop()
    async with pool.session() as session:
        assert await session.run("echo.py", "again") == ["again"]
    await pool.delete()


async def test_stopping_lets_tasks_finish(client: Client, name: str) -> None:
    """Agents that are stopped finish what they run, hand back the rest, and the session gets others."""
    pool = await client.ensure_pool(name, files=NAP, nodes=1)
    async with pool.session() as session:
        running = await session.submit("nap.py", args=1.0)
        waiting = await session.submit("nap.py", args=0.1)
        async for event in session.events():
            if event.message == "napping":
                break
        await pool.stop()
        result = await running.outcome()
        assert (result.value, result.attempt, result.attempts) == (1.0, 1, ())
        assert await waiting == 0.1
    await pool.delete()


async def test_a_job_closes(client: Client, name: str) -> None:
    """A closed job takes no new tasks, neither by living sessions nor by new ones."""
    pool = await client.ensure_pool(name, nodes=0)
    job = await pool.create_job("nightly")
    with pytest.raises(JobExists, match="nightly"):
        await pool.create_job("nightly")
    session = await job.session("one")
    await job.close()
    assert (await pool.job("nightly")).state == "closed"
    with pytest.raises(JobClosed, match="nightly"):
        await session.submit("echo.py")
    with pytest.raises(JobClosed, match="nightly"):
        await pool.session(job="nightly")
    await pool.delete()


async def test_jobs_are_deleted(client: Client, name: str) -> None:
    """Deleting one job, or all, removes their documents."""
    pool = await client.ensure_pool(name, nodes=0)
    for each in ("one", "two", "three"):
        await pool.create_job(each)
    await pool.delete_job("two")
    assert sorted([job.name async for job in pool.jobs()]) == ["one", "three"]
    with pytest.raises(JobNotFound, match="two"):
        await pool.job("two")
    await pool.delete_all_jobs()
    assert [job.name async for job in pool.jobs()] == []
    await pool.delete()


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (PoolSpec("no spaces"), "no spaces"),
        (PoolSpec("x" * 65), "1 to 64"),
        (PoolSpec("fine", nodes=-1), "nodes is -1.*0 or more"),
        (PoolSpec("fine", image="canonical:windows:95"), "canonical:windows:95.*allowed: one of"),
        (PoolSpec("fine", container="python:3.12"), "container is 'python:3.12'"),
        (
            PoolSpec("fine", vm_size="standard_nonsense"),
            "standard_nonsense.*setting pool.vm_size.*az batch location list-skus",
        ),
    ],
)
async def test_a_bad_spec_is_refused(client: Client, spec: PoolSpec, text: str) -> None:
    """What Batch would not take is refused, and nothing is left behind."""
    before = await everything(client)
    for make in (client.create_pool(spec), client.ensure_pool(spec.id, spec=spec)):
        with pytest.raises(ConfigurationError, match=text):
            await make
    assert await everything(client) <= before


async def everything(client: Client) -> set[str]:
    """What earlier tests delete may go at any moment: only what is new is left behind."""
    services = client.connections
    pools = [pool.id async for pool in services.compute.pools()]
    return {*await containers(client), *await services.admin.queues(), *pools}


async def test_an_image_past_its_end_is_refused(client: Client) -> None:
    """It is named, with those that there are, before anything is made."""
    before = await everything(client)
    name = "canonical:ubuntu-24_04-lts:server"
    faults = Faults(client.settings)
    await faults.account(retired=[name])
    try:
        with pytest.raises(ConfigurationError, match=rf"image is '{name}'.*allowed: .*the end of this one"):
            await client.create_pool(PoolSpec("fine", image=name))
    finally:
        await faults.account()
    assert await everything(client) <= before


async def test_an_unknown_key_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    """File, key and what was meant, when the client is made."""
    config = tmp_path / "batchflow.toml"
    config.write_text('[pool]\nvmsize = "standard_d2s_v3"\n')
    with pytest.raises(ConfigurationError, match=r"batchflow\.toml.*pool\.vmsize.*'vm_size'"):
        Client.from_config(config)
