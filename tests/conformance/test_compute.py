"""The port to the machines keeps its promises, against the local cloud and a real account."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from batchflow.errors import ConfigurationError, PoolExists, PoolNotFound
from batchflow.model import Image
from batchflow.ports.compute import BatchTask, PoolDocument

if TYPE_CHECKING:
    from batchflow.ports.compute import BatchTaskInfo, Compute

SIZE = "standard_d2s_v3"
IMAGE = Image(node_agent="batch.node.ubuntu 24.04")
LONG = 600.0
"""Seconds in which a real node boots."""


async def ended(compute: Compute, job: str) -> list[BatchTaskInfo]:
    """The tasks of a job once all of them have ended."""
    async with asyncio.timeout(LONG):
        while True:
            tasks = await compute.tasks(job)
            if all(task.state == "completed" for task in tasks):
                return tasks
            await asyncio.sleep(0.05)


async def test_pool_is_made_once_read_listed_and_deleted(compute: Compute, name: str) -> None:
    """Making it a second time is refused; deleting it a second time is not."""
    document = PoolDocument(name, SIZE, IMAGE, 0, metadata={"made-by": "conformance"})
    await compute.create_pool(document)
    with pytest.raises(PoolExists):
        await compute.create_pool(document)
    pool = await compute.pool(name)
    assert (pool.id, pool.state, pool.vm_size, pool.wanted, pool.task_slots) == (name, "active", SIZE, 0, 1)
    assert pool.metadata == {"made-by": "conformance"}
    assert name in [each.id async for each in compute.pools()]
    assert await compute.nodes(name) == []
    assert await compute.delete_pool(name)
    assert await compute.delete_pool(name) in (True, False)


async def test_bad_pool_is_refused_with_reasons(compute: Compute) -> None:
    """The reasons are those of Batch."""
    with pytest.raises(ConfigurationError, match="not an id!"):
        await compute.create_pool(PoolDocument("not an id!", SIZE, IMAGE, 0))


async def test_missing_pool_is_reported_by_its_own_error(compute: Compute, name: str) -> None:
    """Deleting it is no error; every other operation raises `PoolNotFound`."""
    with pytest.raises(PoolNotFound):
        await compute.pool(name)
    with pytest.raises(PoolNotFound):
        await compute.nodes(name)
    with pytest.raises(PoolNotFound):
        await compute.resize_pool(name, 1, 0)
    assert not await compute.delete_pool(name)


async def test_missing_job_has_nothing_to_list_read_or_delete(compute: Compute, name: str) -> None:
    """Each operation answers that there is nothing."""
    assert await compute.tasks(name) == []
    assert await compute.task_output(name, "t", "stdout.txt") == ""
    assert not await compute.delete_task(name, "t")
    assert not await compute.delete_job(name)


@pytest.mark.timeout(900)
async def test_tasks_run_and_tell_their_exit_and_output(compute: Compute, name: str) -> None:
    """They can be removed with their job."""
    await compute.create_pool(PoolDocument(name, SIZE, IMAGE, 1, start_command="/bin/true"))
    try:
        assert await compute.create_job(name, name)
        assert not await compute.create_job(name, name)
        tasks = [
            BatchTask("good", "/bin/sh -c 'echo $GREETING, world'", environment={"GREETING": "hello"}),
            BatchTask("bad", "/bin/sh -c 'echo oh >&2; exit 3'"),
        ]
        await compute.add_tasks(name, tasks)
        await compute.add_tasks(name, tasks)
        told = {task.id: task for task in await ended(compute, name)}
        assert told["good"].exit_code == 0
        assert told["good"].failure is None
        assert told["bad"].exit_code == 3
        assert told["bad"].failure is not None
        assert told["bad"].node in [node.id for node in await compute.nodes(name)]
        assert await compute.task_output(name, "good", "stdout.txt") == "hello, world\n"
        assert await compute.task_output(name, "good", "stdout.txt", tail=6) == "world\n"
        assert await compute.task_output(name, "good", "stderr.txt") == ""
        assert await compute.task_output(name, "bad", "stderr.txt") == "oh\n"
        assert await compute.task_output(name, "good", "nothing.txt") == ""
        assert await compute.delete_task(name, "bad")
        assert [task.id for task in await compute.tasks(name)] == ["good"]
    finally:
        await compute.delete_job(name)
        await compute.delete_pool(name)


async def test_completed_job_gives_way_to_a_new_one(compute: Compute, name: str) -> None:
    """It ended when it was idle."""
    await compute.create_pool(PoolDocument(name, SIZE, IMAGE, 1))
    try:
        await compute.create_job(name, name)
        await compute.add_tasks(name, [BatchTask("only", "/bin/true")])
        await compute.end_job_when_idle(name)
        await ended(compute, name)
        async with asyncio.timeout(LONG):
            while not await compute.create_job(name, name):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert await compute.tasks(name) == []
    finally:
        await compute.delete_job(name)
        await compute.delete_pool(name)


async def test_more_tasks_than_one_request_takes_are_all_added(compute: Compute, name: str) -> None:
    """They are added in several requests."""
    await compute.create_pool(PoolDocument(name, SIZE, IMAGE, 0))
    try:
        await compute.create_job(name, name)
        await compute.add_tasks(name, [BatchTask(f"t{i}", "/bin/true") for i in range(120)])
        assert len(await compute.tasks(name)) == 120
        assert {task.state for task in await compute.tasks(name)} == {"active"}
    finally:
        await compute.delete_job(name)
        await compute.delete_pool(name)


async def test_default_image_is_supported_and_not_retired(compute: Compute) -> None:
    """It comes with its node agent."""
    images = await compute.images()
    (default,) = [
        image
        for image in images
        if (image.publisher.lower(), image.offer, image.sku) == (IMAGE.publisher, IMAGE.offer, IMAGE.sku)
    ]
    assert default.node_agent.lower() == IMAGE.node_agent
    assert default.linux
    assert default.end_of_life is None or default.end_of_life > time.time()


@pytest.mark.timeout(1800)
async def test_nodes_reboot_with_a_changed_start_task_and_leave_by_name(compute: Compute, name: str) -> None:
    """The output of a start task can be read."""
    script = "/bin/sh -c 'echo {} >&2'"
    document = PoolDocument(name, SIZE, IMAGE, 2, start_command=script.format("one"))
    await compute.create_pool(document)
    try:
        first, second = await nodes_at_rest(compute, name, 2)
        assert await compute.node_output(name, first, "startup/stderr.txt") == "one\n"
        assert await compute.node_output(name, first, "startup/nothing.txt") == ""
        changed = replace(document, start_command=script.format("two"))
        await compute.change_start_task(changed)
        assert (await compute.pool(name)).start_command == changed.start_command
        await compute.reboot_node(name, first)
        await nodes_at_rest(compute, name, 2)
        assert "two" in await compute.node_output(name, first, "startup/stderr.txt")
        await compute.remove_nodes(name, [second])
        assert await nodes_at_rest(compute, name, 1) == [first]
        assert (await compute.pool(name)).wanted == 1
    finally:
        await compute.delete_pool(name)


async def nodes_at_rest(compute: Compute, name: str, count: int) -> list[str]:
    """The ids of the pool's nodes, once there are so many and each waits for work."""
    async with asyncio.timeout(LONG):
        while True:
            nodes = await compute.nodes(name)
            pool = await compute.pool(name)
            if len(nodes) == count and pool.allocation == "steady" and {n.state for n in nodes} == {"idle"}:
                return [node.id for node in nodes]
            await asyncio.sleep(0.05)
