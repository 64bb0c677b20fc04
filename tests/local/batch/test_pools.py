"""Pools and nodes of the local Batch service, through the unmodified SDK."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from azure.batch import models
from azure.core import MatchConditions
from azure.core.exceptions import (
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)

from tests.support.batch_sdk import code


async def test_pool_is_created_with_its_nodes(batch: Any) -> None:
    """A pool reaches its size, its nodes become idle, and its document tells so."""
    metadata = [models.BatchMetadataItem(name="made-by", value="test")]
    await batch.pool(nodes=2, metadata=metadata, task_slots_per_node=4)
    pool = await batch.client.get_pool("pool")
    assert (pool.state, pool.allocation_state) == ("active", "steady")
    assert (pool.current_dedicated_nodes, pool.target_dedicated_nodes, pool.task_slots_per_node) == (2, 2, 4)
    assert pool.vm_size == "standard_d2s_v3"
    assert pool.resize_timeout == timedelta(minutes=15)
    assert [(item.name, item.value) for item in pool.metadata] == [("made-by", "test")]


async def test_nodes_look_like_azure_nodes(batch: Any) -> None:
    """Node ids are Azure's in form, distinct, and a spot node says what it is."""
    await batch.client.create_pool(_spot_pool())
    await batch.until(batch.node_states, ["idle", "idle"])
    nodes = [node async for node in batch.client.list_nodes("pool")]
    assert sorted(node.id[-2:] for node in nodes) == ["_d", "_p"]
    assert all(node.id.startswith("tvmps_") and node.is_dedicated == node.id.endswith("_d") for node in nodes)
    assert (await batch.client.get_node("pool", nodes[0].id)).affinity_id == f"TVM:{nodes[0].id}"


def _spot_pool() -> models.BatchPoolCreateOptions:
    image = models.BatchVmImageReference(publisher="canonical", offer="ubuntu-24_04-lts", sku="server")
    return models.BatchPoolCreateOptions(
        id="pool",
        vm_size="standard_d2s_v3",
        target_dedicated_nodes=1,
        target_low_priority_nodes=1,
        virtual_machine_configuration=models.VirtualMachineConfiguration(
            image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04"
        ),
    )


async def test_pool_ids_ignore_case(batch: Any) -> None:
    """The same id in another case is the same pool, and cannot be made twice."""
    await batch.pool("Pool", 0)
    assert (await batch.client.get_pool("pOOL")).id == "Pool"
    with pytest.raises(ResourceExistsError) as raised:
        await batch.pool("POOL", 0)
    assert code(raised) == "PoolExists"


async def test_pool_exists(batch: Any) -> None:
    """Whether a pool exists can be asked; the SDK raises when it does not."""
    await batch.pool(nodes=0)
    assert await batch.client.pool_exists("pool")
    with pytest.raises(ResourceNotFoundError):
        await batch.client.pool_exists("other")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"vm_size": "Standard_Nope_v9"}, "vmSize"),
        ({"task_slots_per_node": 9}, "taskSlotsPerNode"),
        ({"target_dedicated_nodes": -1}, "targetDedicatedNodes"),
        ({"resize_timeout": timedelta(minutes=1)}, "resizeTimeout"),
    ],
)
async def test_what_a_pool_cannot_have_is_refused(batch: Any, options: dict[str, Any], named: str) -> None:
    """A value that the service does not take is refused by the property's name, and no pool is made."""
    with pytest.raises(HttpResponseError) as raised:
        await batch.pool(nodes=options.get("target_dedicated_nodes", 1), ready=False, **options)
    assert (raised.value.status_code, code(raised)) == (400, "InvalidPropertyValue")
    assert raised.value.model is not None
    assert named in {item.value for item in raised.value.model.error_values}
    assert [pool.id async for pool in batch.client.list_pools()] == []


@pytest.mark.parametrize("pool_id", ["with space", "dot.dot", "x" * 65, "ä"])
async def test_bad_pool_ids_are_refused(batch: Any, pool_id: str) -> None:
    """An id has 1 to 64 letters, digits, hyphens and underscores."""
    with pytest.raises(HttpResponseError) as raised:
        await batch.pool(pool_id, 0)
    assert code(raised) == "InvalidPropertyValue"


async def test_unknown_image_and_wrong_agent_are_refused(batch: Any) -> None:
    """An image that is not supported, or not with that node agent, is refused."""
    for sku, agent in (("99_04", "batch.node.ubuntu 24.04"), ("server", "batch.node.debian 12")):
        image = models.BatchVmImageReference(publisher="canonical", offer="ubuntu-24_04-lts", sku=sku)
        machine = models.VirtualMachineConfiguration(image_reference=image, node_agent_sku_id=agent)
        with pytest.raises(HttpResponseError) as raised:
            await batch.pool(nodes=0, virtual_machine_configuration=machine)
        assert code(raised) == "InvalidPropertyValue"


async def test_start_task_runs_before_the_node_is_idle(batch: Any) -> None:
    """A start task runs in the startup directory, retried as allowed, and its result is told."""
    command = "/bin/sh -c 'echo x >> tries; test $(wc -l < tries) -eq 2'"
    await batch.pool(start_task=models.BatchStartTask(command_line=command, max_task_retry_count=3))
    node = await anext(aiter(batch.client.list_nodes("pool")))
    assert (node.start_task_info.state, node.start_task_info.exit_code) == ("completed", 0)
    assert node.start_task_info.retry_count == 1
    names = [item.name async for item in batch.client.list_node_files("pool", node.id, recursive=True)]
    assert {"startup/stdout.txt", "startup/stderr.txt", "startup/wd/tries", "shared", "workitems"} <= set(
        names
    )


async def test_failed_start_task_keeps_tasks_away(batch: Any) -> None:
    """A node whose start task failed says so, with the failure, and gets no tasks."""
    await batch.pool(start_task=models.BatchStartTask(command_line="/bin/false"), ready=False)
    await batch.until(batch.node_states, ["starttaskfailed"])
    node = await anext(aiter(batch.client.list_nodes("pool")))
    assert (node.start_task_info.result, node.start_task_info.exit_code) == ("failure", 1)
    assert node.start_task_info.failure_info.code == "FailureExitCode"
    await batch.job()
    await batch.task("task", "hostname")
    assert await batch.task_state("task") == "active"


async def test_start_task_that_need_not_succeed(batch: Any) -> None:
    """Without waitForSuccess a node takes tasks, whatever its start task does."""
    start_task = models.BatchStartTask(command_line="/bin/false", wait_for_success=False)
    await batch.pool(start_task=start_task)


async def test_resize_up_and_down(batch: Any) -> None:
    """A pool grows and shrinks to its target, and is steady afterwards."""
    await batch.pool(nodes=1)
    for nodes in (3, 0):
        poller = await batch.client.begin_resize_pool(
            "pool", models.BatchPoolResizeOptions(target_dedicated_nodes=nodes), polling_interval=0
        )
        await poller.wait()
        pool = await batch.client.get_pool("pool")
        assert (pool.allocation_state, pool.current_dedicated_nodes) == ("steady", nodes)


async def test_resize_is_refused_while_resizing(batch: Any) -> None:
    """A pool that waits for a node's tasks to complete refuses another resize until that one is stopped."""
    await batch.pool()
    await batch.job()
    await batch.task("task", "sleep 60")
    await batch.until_task("task", "running")
    shrink = models.BatchPoolResizeOptions(
        target_dedicated_nodes=0, node_deallocation_option=models.BatchNodeDeallocationOption.TASK_COMPLETION
    )
    await batch.client.begin_resize_pool("pool", shrink)
    assert (await batch.client.get_pool("pool")).allocation_state == "resizing"
    assert await batch.node_states() == ["leavingpool"]
    with pytest.raises(ResourceExistsError) as raised:
        await batch.client.begin_resize_pool("pool", shrink)
    assert code(raised) == "PoolBeingResized"
    await batch.client.begin_stop_pool_resize("pool")
    pool = await batch.client.get_pool("pool")
    assert (pool.allocation_state, pool.current_dedicated_nodes) == ("steady", 1)
    assert [error.code for error in pool.resize_errors] == ["ResizeStopped"]
    assert await batch.node_states() == ["running"]


async def test_tasks_of_removed_nodes_are_requeued(batch: Any) -> None:
    """A node that is removed hands its task back; the task runs on another node, and says it was requeued."""
    await batch.pool(nodes=2)
    await batch.job()
    await batch.task("task", "/bin/sh -c 'test $(ls \"$AZ_BATCH_NODE_SHARED_DIR\" | wc -l) = 1 || sleep 60'")
    task = await batch.until_task("task", "running")
    other = next(path for path in batch.root.iterdir() if not (path / "workitems" / "job").exists())
    (other / "shared" / "mark").touch()
    first = task.node_info.node_id
    await batch.client.begin_remove_nodes("pool", models.BatchNodeRemoveOptions(node_ids=[first]))
    task = await batch.until_task("task", "completed")
    assert task.execution_info.requeue_count == 1
    assert task.node_info.node_id != first
    assert task.execution_info.exit_code == 0
    await batch.until(batch.node_states, ["idle"])
    assert (await batch.client.get_pool("pool")).target_dedicated_nodes == 1


async def test_tasks_of_removed_nodes_can_be_terminated(batch: Any) -> None:
    """With the option terminate, the tasks of a removed node complete as ended by the user."""
    await batch.pool()
    await batch.job()
    await batch.task("task", "sleep 60")
    await batch.until_task("task", "running")
    shrink = models.BatchPoolResizeOptions(target_dedicated_nodes=0, node_deallocation_option="terminate")
    await batch.client.begin_resize_pool("pool", shrink)
    task = await batch.until_task("task", "completed")
    assert task.execution_info.failure_info.code == "TaskEnded"


async def test_removing_an_unknown_node_is_refused(batch: Any) -> None:
    """Nodes that the pool has not cannot be removed, and nothing changes."""
    await batch.pool()
    options = models.BatchNodeRemoveOptions(node_ids=["tvmps_none_d"])
    with pytest.raises(ResourceNotFoundError) as raised:
        await batch.client.begin_remove_nodes("pool", options)
    assert code(raised) == "NodeNotFound"
    assert (await batch.client.get_pool("pool")).allocation_state == "steady"


async def test_deleted_pool_goes_with_its_nodes(batch: Any) -> None:
    """A pool is deleting before the answer leaves, then gone with its disks; its tasks wait on."""
    await batch.pool()
    await batch.job()
    await batch.task("task", "sleep 60")
    await batch.until_task("task", "running")
    deletions = [batch.client.begin_delete_pool("pool", polling_interval=0) for _ in range(2)]
    answers = await asyncio.gather(*deletions, return_exceptions=True)
    [refusal] = [answer for answer in answers if isinstance(answer, ResourceExistsError)]
    assert "PoolBeingDeleted" in str(refusal)
    [poller] = [answer for answer in answers if not isinstance(answer, BaseException)]
    await poller.wait()
    with pytest.raises(ResourceNotFoundError):
        await batch.client.get_pool("pool")
    assert await batch.task_state("task") == "active"
    assert [path.name for path in batch.root.iterdir()] == ["trash"]


async def test_patch_leaves_what_it_omits(batch: Any) -> None:
    """PATCH changes what is given; updateproperties removes what is not."""
    start_task = models.BatchStartTask(command_line="hostname")
    await batch.pool(nodes=0, start_task=start_task)
    metadata = [models.BatchMetadataItem(name="a", value="b")]
    await batch.client.update_pool("pool", models.BatchPoolUpdateOptions(metadata=metadata))
    pool = await batch.client.get_pool("pool")
    assert pool.start_task.command_line == "hostname"
    assert pool.metadata == metadata
    replacement = models.BatchPoolReplaceOptions(application_package_references=[], metadata=[])
    await batch.client.replace_pool_properties("pool", replacement)
    pool = await batch.client.get_pool("pool")
    assert pool.start_task is None
    assert not pool.metadata


async def test_etags_guard_changes(batch: Any) -> None:
    """A change under a stale ETag is refused and changes nothing; reading under the current one is too."""
    await batch.pool(nodes=0)
    stale = (await batch.client.get_pool("pool")).etag
    change = models.BatchPoolUpdateOptions(metadata=[models.BatchMetadataItem(name="a", value="b")])
    await batch.client.update_pool("pool", change, etag=stale, match_condition=MatchConditions.IfNotModified)
    with pytest.raises(ResourceModifiedError) as raised:
        await batch.client.update_pool(
            "pool",
            models.BatchPoolUpdateOptions(metadata=[]),
            etag=stale,
            match_condition=MatchConditions.IfNotModified,
        )
    assert (raised.value.status_code, code(raised)) == (412, "ConditionNotMet")
    pool = await batch.client.get_pool("pool")
    assert pool.metadata
    assert pool.etag != stale
    with pytest.raises(HttpResponseError) as unchanged:
        await batch.client.get_pool("pool", etag=pool.etag, match_condition=MatchConditions.IfModified)
    assert unchanged.value.status_code == 304


async def test_reboot_runs_the_changed_start_task(batch: Any) -> None:
    """A changed start task counts when the node reboots; the disk stays, the task is requeued."""
    await batch.pool()
    await batch.job()
    await batch.task("task", "sleep 60")
    task = await batch.until_task("task", "running")
    start_task = models.BatchStartTask(
        command_line="/bin/sh -c 'echo new > $AZ_BATCH_NODE_SHARED_DIR/started'"
    )
    await batch.client.update_pool("pool", models.BatchPoolUpdateOptions(start_task=start_task))
    node_id = task.node_info.node_id
    booted = (await batch.client.get_node("pool", node_id)).last_boot_time
    await batch.client.begin_reboot_node("pool", node_id, {"nodeRebootOption": "requeue"})
    await batch.until(batch.node_states, ["running"])
    node = await batch.client.get_node("pool", node_id)
    assert node.last_boot_time > booted
    assert node.start_task_info.exit_code == 0
    assert (await batch.client.get_task("job", "task")).execution_info.requeue_count == 1
    started = await batch.client.download_node_file("pool", node_id, "shared/started")
    assert b"".join([chunk async for chunk in started]) == b"new\n"


async def test_reimage_wipes_the_disk(batch: Any) -> None:
    """A re-imaged node keeps its id and loses what was on its disk."""
    await batch.pool()
    await batch.job()
    await batch.run("task", "touch kept")
    node = await anext(aiter(batch.client.list_nodes("pool")))
    await batch.client.begin_reimage_node("pool", node.id, {"nodeReimageOption": "requeue"})
    await batch.until(batch.node_states, ["idle"])
    names = [item.name async for item in batch.client.list_node_files("pool", node.id, recursive=True)]
    assert sorted(names) == ["fsmounts", "shared", "startup", "startup/wd", "workitems"]


async def test_deallocated_node_can_be_started(batch: Any) -> None:
    """A deallocated node hands its task back, loses its disk, and works again when it is started."""
    await batch.pool()
    await batch.job()
    node = await anext(aiter(batch.client.list_nodes("pool")))
    await batch.run("task", "touch kept")
    with pytest.raises(ResourceExistsError) as raised:
        await batch.client.begin_start_node("pool", node.id)
    assert code(raised) == "OperationNotValidOnNode"
    await batch.client.begin_deallocate_node("pool", node.id, {"nodeDeallocateOption": "requeue"})
    assert await batch.node_states() == ["deallocated"]
    await batch.client.begin_start_node("pool", node.id)
    await batch.until(batch.node_states, ["idle"])
    names = [item.name async for item in batch.client.list_node_files("pool", node.id, recursive=True)]
    assert not any(name.startswith("workitems/") for name in names)


async def test_disabled_node_gets_no_tasks(batch: Any) -> None:
    """A node whose scheduling is disabled goes offline, and works again when enabled."""
    await batch.pool()
    await batch.job()
    node = await anext(aiter(batch.client.list_nodes("pool")))
    disable = models.BatchNodeDisableSchedulingOptions(node_disable_scheduling_option="requeue")
    await batch.client.disable_node_scheduling("pool", node.id, disable)
    assert await batch.node_states() == ["offline"]
    with pytest.raises(ResourceExistsError) as raised:
        await batch.client.disable_node_scheduling("pool", node.id, disable)
    assert code(raised) == "NodeAlreadyInTargetSchedulingState"
    await batch.task("task", "hostname")
    assert await batch.task_state("task") == "active"
    await batch.client.enable_node_scheduling("pool", node.id)
    await batch.until_task("task", "completed")


async def test_node_counts_and_images(batch: Any) -> None:
    """The counts of nodes by state, and the images to choose from."""
    await batch.pool(nodes=2)
    counts = [item async for item in batch.client.list_pool_node_counts()]
    assert [(item.pool_id, item.dedicated.idle, item.dedicated.total) for item in counts] == [("pool", 2, 2)]
    images = [
        item async for item in batch.client.list_supported_images(filter="verificationType eq 'verified'")
    ]
    assert "batch.node.ubuntu 24.04" in {image.node_agent_sku_id for image in images}
    assert all(image.verification_type == "verified" for image in images)


async def test_lists_are_filtered_selected_and_paged(batch: Any) -> None:
    """Filters, selections and pages of a list work together."""
    for number in range(5):
        await batch.pool(f"pool-{number}", 0)
    await batch.pool("other", 0)
    pages = batch.client.list_pools(
        filter="startswith(id, 'pool') and state eq 'active'", select=["id", "state"], max_results=2
    ).by_page()
    seen = [[pool.id async for pool in page] async for page in pages]
    assert seen == [["pool-0", "pool-1"], ["pool-2", "pool-3"], ["pool-4"]]
    first = await anext(aiter(batch.client.list_pools(select=["id"])))
    assert first.vm_size is None


async def test_boot_takes_its_time(batch_with: Any) -> None:
    """With a boot delay a pool is steady while its nodes still start."""
    batch = await batch_with(boot_delay=0.3)
    await batch.client.create_pool(_spot_pool())
    await batch.until(batch.node_states, ["starting", "starting"])
    assert (await batch.client.get_pool("pool")).allocation_state == "steady"
    await batch.until(batch.node_states, ["idle", "idle"])
