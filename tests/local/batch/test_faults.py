"""Faults on demand: what the local Batch service shows of them to the unmodified SDK."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from azure.batch import models
from azure.core.exceptions import HttpResponseError, ResourceExistsError

from batchflow.errors import ConfigurationError, PoolError
from batchflow.local.faults import Faults
from batchflow.settings import BatchSettings, Settings

SPOT = {"target_low_priority_nodes": 1}


@pytest.fixture
def faults(batch: Any) -> Faults:
    return Faults(settings(batch))


def settings(batch: Any, key: str | None = None) -> Settings:
    key = key or batch.key
    return Settings(target="local", batch=BatchSettings("local", key, batch.server.url))


async def steady(batch: Any) -> models.BatchPool:
    """The pool, once its resize is over."""

    async def allocation() -> str:
        return str((await batch.client.get_pool("pool")).allocation_state.value)

    await batch.until(allocation, "steady")
    pool: models.BatchPool = await batch.client.get_pool("pool")
    return pool


def resize_codes(pool: models.BatchPool) -> list[str | None]:
    """Return the codes of a pool's resize errors."""
    return [error.code for error in pool.resize_errors or []]


@pytest.mark.parametrize("code", ["AllocationFailed", "AllocationTimedout", "AccountCoreQuotaReached"])
async def test_allocation_failure(batch: Any, faults: Faults, code: str) -> None:
    """A resize ends with its error and the nodes that could be had; without the fault it succeeds."""
    await faults.allocation_failure("pool", code=code, nodes=1)
    await batch.pool(nodes=3, ready=False)
    pool = await steady(batch)
    assert (pool.current_dedicated_nodes, resize_codes(pool)) == (1, [code])
    await faults.clear("pool")
    options = models.BatchPoolResizeOptions(target_dedicated_nodes=2)
    await batch.client.begin_resize_pool("pool", options, polling_interval=0)
    pool = await steady(batch)
    assert (pool.current_dedicated_nodes, pool.resize_errors) == (2, None)


async def test_pool_beyond_the_core_quota_is_not_allocated(batch: Any, faults: Faults) -> None:
    """A pool of a million nodes gets what an account has cores for, and the service goes on.

    It used to make a million nodes, and answered nobody meanwhile.
    """
    await faults.slow_start("pool", 600)
    await batch.pool(nodes=1_000_000, ready=False)
    pool = await steady(batch)
    assert (pool.target_dedicated_nodes, pool.current_dedicated_nodes) == (1_000_000, 1000)
    assert resize_codes(pool) == ["AccountCoreQuotaReached"]


async def test_quotas(batch: Any, faults: Faults) -> None:
    """Pools and jobs beyond the account's quota are refused with the service's codes."""
    await faults.account(reached=["pools", "jobs"])
    with pytest.raises(ResourceExistsError, match="PoolQuotaReached"):
        await batch.pool(ready=False)
    with pytest.raises(ResourceExistsError, match="ActiveJobAndScheduleQuotaReached"):
        await batch.job()
    await faults.account()
    await batch.pool()
    await batch.job()


async def test_quotas_are_numbers(batch: Any, faults: Faults) -> None:
    """So many pools and active jobs there may be; a job that has ended counts no more."""
    await faults.account(pools=1, jobs=1)
    await batch.pool(nodes=0)
    await batch.job()
    with pytest.raises(ResourceExistsError, match="PoolQuotaReached"):
        await batch.pool("other", nodes=0, ready=False)
    with pytest.raises(ResourceExistsError, match="ActiveJobAndScheduleQuotaReached"):
        await batch.job("other")
    await batch.client.begin_terminate_job("job", {"terminateReason": "done"}, polling_interval=0)
    await batch.job("other")


async def test_slow_start(batch: Any, faults: Faults) -> None:
    """A node that boots slowly is starting meanwhile."""
    await faults.slow_start("pool", 600)
    await batch.pool(ready=False)
    await batch.until(batch.node_states, ["starting"])


async def test_retired_images(batch: Any, faults: Faults) -> None:
    """No pool is made of an image whose end has come on demand, and the list of images tells of it."""
    await faults.account(retired=["canonical:ubuntu-24_04-lts:server"])
    with pytest.raises(HttpResponseError, match="2020-01-01"):
        await batch.pool(ready=False)
    await faults.account()
    await batch.pool(nodes=0)


async def test_start_task_failure(batch: Any, faults: Faults) -> None:
    """A start task that fails shows its code, and its words in the node's files."""
    await faults.start_task_failure("pool", stderr="it's no package", exit_code=7)
    await batch.pool(ready=False)
    await batch.until(batch.node_states, ["starttaskfailed"])
    (node,) = [node async for node in batch.client.list_nodes("pool")]
    assert (node.start_task_info.exit_code, node.start_task_info.failure_info.code) == (7, "FailureExitCode")
    chunks = await batch.client.download_node_file("pool", node.id, "startup/stderr.txt")
    assert b"".join([chunk async for chunk in chunks]) == b"it's no package\n"
    await faults.clear("pool")
    await batch.client.begin_reboot_node("pool", node.id, {"nodeRebootOption": "requeue"}, polling_interval=0)
    await batch.until(batch.node_states, ["idle"])


async def test_unusable_node(batch: Any, faults: Faults) -> None:
    """An unusable node says why and runs nothing; its tasks wait; a reboot heals it."""
    await batch.pool()
    await batch.job()
    await batch.task("long", "/bin/sleep 600")
    await batch.until_task("long", "running")
    await faults.unusable("pool", code="DiskFull")
    await batch.until_task("long", "active")
    (node,) = [node async for node in batch.client.list_nodes("pool")]
    assert (node.state, [error.code for error in node.errors]) == ("unusable", ["DiskFull"])
    await batch.client.begin_reboot_node("pool", node.id, {"nodeRebootOption": "requeue"}, polling_interval=0)
    await batch.until_task("long", "running")


async def test_preemption(batch: Any, faults: Faults) -> None:
    """While a node is preempted its task waits, and it cannot be preempted once more."""
    await batch.pool(nodes=0, ready=False, **SPOT)
    await batch.job()
    await batch.until(batch.node_states, ["idle"])
    (node,) = [node async for node in batch.client.list_nodes("pool")]
    await batch.task("long", "/bin/sleep 600")
    await batch.until_task("long", "running")
    await faults.preempt("pool", seconds=600)
    await batch.until(batch.node_states, ["preempted"])
    assert (await batch.until_task("long", "active")).execution_info.requeue_count == 1
    with pytest.raises(PoolError, match="OperationNotValidOnNode"):
        await faults.preempt("pool", node.id)


async def test_preempted_node_comes_back(batch: Any, faults: Faults) -> None:
    """After its time the node has its id again, nothing on its disk, and the task that it lost."""
    await batch.pool(nodes=0, ready=False, **SPOT)
    await batch.job()
    await batch.until(batch.node_states, ["idle"])
    before = [node.id async for node in batch.client.list_nodes("pool")]
    kept = batch.root / node_directory(batch) / "shared" / "kept"
    kept.touch()
    await batch.task("long", "/bin/sleep 600")
    await batch.until_task("long", "running")
    await faults.preempt("pool")
    await batch.until(lambda: requeues(batch), 1)
    await batch.until_task("long", "running")
    assert [node.id async for node in batch.client.list_nodes("pool")] == before
    assert not kept.exists()


async def test_preemption_with_a_notice(batch: Any, faults: Faults) -> None:
    """The node reads of it before, as Azure's metadata service tells it; then it goes."""
    await batch.pool(nodes=0, ready=False, **SPOT)
    await batch.until(batch.node_states, ["idle"])
    (node,) = [node async for node in batch.client.list_nodes("pool")]
    address = f"{batch.server.url}/metadata/pool/{node.id}"

    async def ask(what: str, **headers: str) -> tuple[int, Any]:
        query = {"api-version": "2020-07-01"}
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"{address}/{what}", params=query, headers=headers) as answer,
        ):
            return answer.status, await (answer.json() if what == "scheduledevents" else answer.text())

    assert await ask("scheduledevents", metadata="true") == (200, {"DocumentIncarnation": 0, "Events": []})
    await faults.preempt("pool", seconds=600, notice=1.5)
    status, document = await ask("scheduledevents", metadata="true")
    (event,) = document["Events"]
    assert (status, event["EventType"], event["EventStatus"]) == (200, "Preempt", "Scheduled")
    assert await ask("instance/compute/name", metadata="true") == (200, event["Resources"][0])
    assert (await ask("scheduledevents"))[0] == 400
    assert (await ask("elsewhere", metadata="true"))[0] == 404
    await batch.until(batch.node_states, ["preempted"])
    assert (await ask("scheduledevents", metadata="true"))[1]["Events"] == []


async def requeues(batch: Any) -> int:
    return int((await batch.client.get_task("job", "long")).execution_info.requeue_count)


def node_directory(batch: Any) -> str:
    (directory,) = [path.name for path in batch.root.iterdir() if (path / "shared").is_dir()]
    return str(directory)


async def test_dedicated_nodes_are_not_preempted(batch: Any, faults: Faults) -> None:
    """Azure preempts spot nodes only."""
    await batch.pool()
    (node,) = [node async for node in batch.client.list_nodes("pool")]
    with pytest.raises(PoolError, match="spot"):
        await faults.preempt("pool", node.id)
    await faults.preempt("pool")
    assert await batch.node_states() == ["idle"]


async def test_lost_node(batch: Any, faults: Faults) -> None:
    """A lost node's task runs on another one; the node may come back, its disk as it was."""
    await batch.pool(nodes=2)
    await batch.job()
    await batch.task("long", "/bin/sleep 600")
    task = await batch.until_task("long", "running")
    await faults.lose("pool", task.node_info.node_id)
    await batch.until(lambda: requeues(batch), 1)
    assert (await batch.until_task("long", "running")).node_info.node_id != task.node_info.node_id
    assert sorted(await batch.node_states()) == ["running", "unknown"]
    await faults.lose("pool", (await batch.client.get_task("job", "long")).node_info.node_id, seconds=0)
    await batch.until(lambda: requeues(batch), 2)
    await batch.until_task("long", "running")


async def test_a_lost_node_can_be_removed(batch: Any, faults: Faults) -> None:
    """A pool with a lost node is deleted like any other."""
    await batch.pool()
    await faults.lose("pool")
    await batch.client.begin_delete_pool("pool", polling_interval=0)

    async def pools() -> list[str]:
        return [pool.id async for pool in batch.client.list_pools()]

    await batch.until(pools, [])


async def test_an_image_past_its_end_is_refused(batch: Any) -> None:
    """No pool is made of an image that the service supports no more."""
    ends = {
        image.image_reference.sku: image.batch_support_end_of_life
        async for image in batch.client.list_supported_images()
    }
    assert ends["20_04-lts"] < datetime.now(UTC)
    machine = models.VirtualMachineConfiguration(
        image_reference=models.BatchVmImageReference(
            publisher="canonical", offer="0001-com-ubuntu-server-focal", sku="20_04-lts"
        ),
        node_agent_sku_id="batch.node.ubuntu 20.04",
    )
    with pytest.raises(HttpResponseError, match="2025-04-23"):
        await batch.pool(virtual_machine_configuration=machine)


@pytest.mark.parametrize(
    "fault",
    [{"fault": "nonsense"}, {}, {"fault": "slowstart", "seconds": -1}, {"fault": "lost", "typo": 1}],
)
async def test_bad_faults(batch: Any, faults: Faults, fault: dict[str, Any]) -> None:
    """What is no fault is refused."""
    with pytest.raises(PoolError, match=r"InvalidPropertyValue|MissingRequired|InvalidRequestBody"):
        await faults.inject("pool", **fault)
    with pytest.raises(PoolError, match="InvalidPropertyValue"):
        await faults.account(reached=["nodes"])


async def test_faults_need_the_key(batch: Any) -> None:
    """Whoever has not the account's key breaks nothing, and on Azure there is nothing to break."""
    wrong = "AAAABBBBCCCCDDDDEEEEFFFFGGGGHHHHIIIIJJJJKKK="
    with pytest.raises(PoolError, match="AuthenticationFailed"):
        await Faults(settings(batch, wrong)).slow_start("pool", 1)
    with pytest.raises(ConfigurationError, match="local cloud"):
        Faults(Settings(target="azure", batch=settings(batch).batch))
