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


async def test_creating_a_pool_twice_is_refused(client: Client, name: str) -> None:
    """Ensuring it twice is one pool."""
    await client.create_pool(PoolSpec(name, nodes=0))
    with pytest.raises(PoolExists, match=name):
        await client.create_pool(PoolSpec(name, nodes=0))
    again = await client.ensure_pool(name, nodes=0)
    assert [pool.id async for pool in client.pools() if pool.id == name] == [name]
    await again.delete()


async def test_repurposing_a_pool_gives_new_sessions_the_new_files(client: Client, name: str) -> None:
    """The nodes stay the same."""
    pool = await client.ensure_pool(name, files=ECHO, nodes=1)
    async with pool.session() as session:
        assert await session.run("echo.py", "a b") == ["a", "b"]
        nodes = [node.id for node in await pool.nodes()]
    pool = await client.ensure_pool(name, files=SHOUT)
    async with pool.session() as session:
        assert await session.run("shout.py", "a b") == ["A", "B"]
        assert [node.id for node in await pool.nodes()] == nodes
    await pool.delete()


async def test_attaching_to_an_existing_pool_leaves_its_document_unchanged(client: Client, name: str) -> None:
    """Another program made the pool, and tasks run in it.

    The document of every node stays as well, but for what the tasks on it change by themselves.
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


async def test_growing_a_pool_starts_an_agent_on_each_new_node(client: Client, name: str) -> None:
    """The agents start by themselves."""
    pool = await client.ensure_pool(name, files=ECHO, nodes=1)
    async with pool.session() as session:
        await session.run("echo.py")
        await pool.resize(2)
        await pool.wait_ready(2, timeout=30)
        assert sorted(node.agent or "" for node in await pool.nodes()) == ["ready", "ready"]
    await pool.delete()


async def test_next_session_starts_stopped_agents(client: Client, name: str) -> None:
    """They run what was queued meanwhile."""
    pool = await client.ensure_pool(name, files=ECHO, nodes=1)
    async with pool.session() as session:
        await session.run("echo.py")
    await pool.stop()
    async with pool.session() as session:
        assert await session.run("echo.py", "again") == ["again"]
    await pool.delete()


async def test_stopping_agents_lets_running_tasks_finish(client: Client, name: str) -> None:
    """The agents hand back the rest, and the session gets other agents."""
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


async def test_closed_job_takes_no_new_tasks(client: Client, name: str) -> None:
    """Living sessions and new ones are refused."""
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


async def test_deleting_jobs_removes_their_documents(client: Client, name: str) -> None:
    """One job is deleted by name, then all of them."""
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
async def test_bad_spec_is_refused_and_leaves_nothing(client: Client, spec: PoolSpec, text: str) -> None:
    """Batch would not take it."""
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


async def test_retired_image_is_refused_before_anything_is_made(client: Client) -> None:
    """The error names it, and the images that there are."""
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


async def test_unknown_key_of_the_configuration_is_refused_first(tmp_path: Path) -> None:
    """The error names file and key, and what was meant."""
    config = tmp_path / "batchflow.toml"
    config.write_text('[pool]\nvmsize = "standard_d2s_v3"\n')
    with pytest.raises(ConfigurationError, match=r"batchflow\.toml.*pool\.vmsize.*'vm_size'"):
        Client.from_config(config)
