"""Every reason why nothing happens is told with its remedy; a wait in vain ends with the same text."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from azure.batch import models
from azure.batch.aio import BatchClient
from azure.core.credentials import AzureNamedKeyCredential

from batchflow import Client, Pool, PoolSpec
from batchflow.diagnosis.remedies import problem_cause
from batchflow.errors import (
    AllocationFailed,
    Backpressure,
    ConfigurationError,
    MailboxInUse,
    NodeUnusable,
    PoolError,
    QuotaExceeded,
    StartTaskFailed,
)
from batchflow.local import server as local_server
from batchflow.local.faults import Faults
from batchflow.local.server import LocalCloud
from batchflow.local.servicebus.server import ServiceBusServer
from batchflow.pools.access import AGENT_RULE
from batchflow.protocol.documents import Heartbeat
from batchflow.protocol.layout import heartbeat_blob
from batchflow.support.version import own_version

ECHO = {"echo.py": b"def do_action(engine, args):\n    return args\n"}
SLEEP = {"sleep.py": b"import time\n\n\ndef do_action(engine, args):\n    time.sleep(float(args[0]))\n"}
PATIENCE = 30.0


@pytest.fixture
def faults(client: Client) -> Faults:
    return Faults(client.settings)


@pytest.fixture
async def name(client: Client) -> AsyncIterator[str]:
    """A pool's name; the pool is removed after the test."""
    name = f"why-{uuid.uuid4().hex[:8]}"
    yield name
    await client.connections.compute.delete_pool(name)


async def told(pool: Pool, *words: str) -> str:
    """The explanation, once it has all these words."""
    return await until(lambda: _text(pool), *words)


async def _text(pool: Pool) -> str:
    return str(await pool.explain())


async def until(look: Callable[[], Awaitable[str]], *words: str) -> str:
    text = ""
    with anyio.move_on_after(PATIENCE):
        while True:
            text = await look()
            if all(word in text for word in words):
                return text
            await anyio.sleep(0.05)
    raise AssertionError(f"no {words} in:\n{text}")


async def fails(pool: Pool, kind: type[PoolError], *words: str) -> str:
    """Waiting ends at once, long before its time, and says why and what to do."""
    with pytest.raises(kind) as caught:
        await pool.wait_ready(timeout=PATIENCE)
    for word in (*words, "what to do:"):
        assert word in str(caught.value)
    return str(caught.value)


async def test_allocation_failure(client: Client, faults: Faults, name: str) -> None:
    """Nodes that Azure cannot give."""
    await faults.allocation_failure(name)
    pool = await client.ensure_pool(name, nodes=2)
    await fails(pool, AllocationFailed, "AllocationFailed", "another VM size or fewer nodes")


async def test_core_quota(client: Client, faults: Faults, name: str) -> None:
    """Cores that the account may not have: one node of two came, which is enough for whoever wants one."""
    await faults.core_quota(name, nodes=1)
    pool = await client.ensure_pool(name, nodes=2)
    await fails(pool, QuotaExceeded, "AccountCoreQuotaReached", "raise the account's quota")
    await pool.wait_ready(1, timeout=PATIENCE)


async def test_pool_quota(client: Client, faults: Faults, name: str) -> None:
    """A pool too many is refused, and nothing is left behind."""
    before = await client.connections.storage.containers("bf-")
    await faults.account(reached=["pools"])
    try:
        with pytest.raises(QuotaExceeded, match="PoolQuotaReached"):
            await client.ensure_pool(name, nodes=1)
    finally:
        await faults.account()
    assert await client.connections.storage.containers("bf-") == before


async def test_job_quota(client: Client, faults: Faults, name: str) -> None:
    """Agents that cannot have a job are a session's problem, told with what to do."""
    pool = await client.ensure_pool(name, nodes=1)
    await faults.account(reached=["jobs"])
    try:
        async with pool.session() as session:

            async def look() -> str:
                return str(await session.explain())

            await until(look, "ActiveJobAndScheduleQuotaReached", "what to do:")
    finally:
        await faults.account()


async def test_slow_start(client: Client, faults: Faults, name: str) -> None:
    """Nodes that take their time; a wait that runs out of time says so."""
    await faults.slow_start(name, 600)
    pool = await client.ensure_pool(name, nodes=1)
    await pool.start()
    await told(pool, "is starting", "wait: it takes minutes on Azure", "agent-0 waits for a node")
    with pytest.raises(TimeoutError, match="is starting"):
        await pool.wait_ready(timeout=0.5)


async def test_many_nodes(client: Client, faults: Faults, name: str) -> None:
    """Of nodes and agents that fare alike a few are told of by name."""
    await faults.slow_start(name, 600)
    pool = await client.ensure_pool(name, nodes=5)
    await pool.start()
    text = await told(
        pool, "2 more nodes are starting", "agent-0, agent-1, agent-2 and 2 more wait for a node"
    )
    assert text.count("is starting") == 3


async def test_start_task_failure(client: Client, faults: Faults, name: str) -> None:
    """A start task that fails, with the end of what it said."""
    await faults.start_task_failure(name, stderr="E: Unable to locate package libfoo", exit_code=100)
    pool = await client.ensure_pool(name, nodes=1)
    await fails(pool, StartTaskFailed, "the start task failed on node", "Unable to locate package libfoo")


async def test_unusable_node(client: Client, faults: Faults, name: str) -> None:
    """A node that broke, with Batch's reason."""
    pool = await client.ensure_pool(name, nodes=1)
    await pool.wait_ready(timeout=PATIENCE)
    await faults.unusable(name, code="DiskFull")
    await told(pool, "is unusable: DiskFull: There is not enough disk space", "reboot the node")
    with pytest.raises(NodeUnusable, match="DiskFull"):
        await pool.wait_ready(2, timeout=PATIENCE)


async def test_preempted_node(client: Client, faults: Faults, name: str) -> None:
    """A spot node that Azure took away comes back with its agent; the session loses nothing."""
    pool = await client.ensure_pool(name, files=ECHO, spec=PoolSpec(name, nodes=0, spot=1))
    async with pool.session() as session:
        assert await session.run("echo.py", "before") == ["before"]
        await faults.preempt(name, seconds=2.0)
        await told(pool, "was preempted", "wait until Azure has spot capacity again")
        await until(lambda: agents_states(pool), "active")
        assert await session.run("echo.py", "after") == ["after"]


async def agents_states(pool: Pool) -> str:
    tasks = await pool.runtime.connections.compute.tasks(pool.runtime.manifest.agents_job)
    return ", ".join(task.state for task in tasks)


async def test_lost_node(client: Client, faults: Faults, name: str) -> None:
    """A node that nobody hears of."""
    pool = await client.ensure_pool(name, nodes=1)
    await pool.wait_ready(timeout=PATIENCE)
    await faults.lose(name)
    await told(pool, "is unknown: Batch has no contact to it", "reboot it")


async def test_retired_image(client: Client, faults: Faults, name: str) -> None:
    """A pool whose image Batch supports no more; making one is refused."""
    pool = await client.ensure_pool(name, nodes=0)
    await faults.account(retired=["canonical:ubuntu-24_04-lts:server"])
    try:
        await told(pool, "canonical:ubuntu-24_04-lts:server is past its end of life", "of another image")
        with pytest.raises(ConfigurationError, match="end of this one's life was 2020-01-01"):
            await client.ensure_pool(f"{name}-2")
    finally:
        await faults.account()


async def test_no_nodes(client: Client, name: str) -> None:
    """A pool without nodes."""
    await told(await client.ensure_pool(name, nodes=0), "the pool has no nodes", "pool.resize(2)")


async def test_waiting_for_more_nodes_than_asked_for_fails(client: Client, name: str) -> None:
    """Waiting for nodes that nobody asked for ends at once."""
    pool = await client.ensure_pool(name, nodes=1)
    with pytest.raises(PoolError, match=r"is to have 1 node, and 3 ready ones are waited for") as caught:
        await pool.wait_ready(3)
    assert "await pool.resize(3)" in str(caught.value)


async def test_pool_with_a_formula(client: Client, name: str) -> None:
    """A pool whose size a formula decides is told so, cannot be resized, and is left as it was."""
    batch = client.settings.batch
    credential = AzureNamedKeyCredential(batch.account or "", batch.key or "")
    image = models.BatchVmImageReference(publisher="canonical", offer="ubuntu-24_04-lts", sku="server")
    machine = models.VirtualMachineConfiguration(
        image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04"
    )
    options = models.BatchPoolCreateOptions(
        id=name,
        vm_size="standard_d2s_v3",
        virtual_machine_configuration=machine,
        enable_auto_scale=True,
        auto_scale_formula="$TargetDedicatedNodes = 0",
    )
    async with BatchClient(batch.url or "", credential) as sdk:
        await sdk.create_pool(options)
        before = (await sdk.get_pool(name)).as_dict()
        pool = await client.pool(name)
        await told(pool, "the pool's formula wants no nodes", "change the pool's formula")
        with pytest.raises(PoolError, match="OperationNotValidOnPool"):
            await pool.resize(2)
        await pool.delete()
        assert (await sdk.get_pool(name)).as_dict() == before


async def test_agent_that_cannot_start(client: Client, name: str) -> None:
    """An interpreter that the nodes do not have ends the wait at once."""
    settings = client.settings
    agent = replace(settings.agent, python="/nowhere/python3")
    async with Client(replace(settings, agent=agent)) as other:
        pool = await other.ensure_pool(name, nodes=1)
        await fails(pool, PoolError, "CommandProgramNotFound", "agent.python")


def program(path: Path, script: str) -> str:
    """An executable that the nodes take for their interpreter."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


async def test_agent_that_ends_at_once(client: Client, name: str, tmp_path: Path) -> None:
    """An interpreter without the agent ends each time that Batch starts it; its words are told."""
    python = program(tmp_path / "python3", "echo 'No module named node_agent' >&2; exit 1")
    settings = client.settings
    async with Client(replace(settings, agent=replace(settings.agent, python=python))) as other:
        pool = await other.ensure_pool(name, nodes=1)
        await fails(pool, PoolError, "times in a row", "No module named node_agent", "agent.python")


async def test_agent_in_a_crash_loop(client: Client, name: str, tmp_path: Path) -> None:
    """An agent that its supervisor starts again and again; the exception is told with where it came from."""
    (tmp_path / "orjson.py").write_text("raise ImportError('this orjson is for another machine')\n")
    python = program(tmp_path / "python3", f'PYTHONPATH={tmp_path} exec {sys.executable} "$@"')
    settings = client.settings
    async with Client(replace(settings, agent=replace(settings.agent, python=python))) as other:
        pool = await other.ensure_pool(name, nodes=1)
        text = await fails(pool, PoolError, "times in a row", "agent_crashed", "agent_died: exit_code 1")
        assert "ImportError: this orjson is for another machine" in text
        assert "orjson.py" in text


async def test_agents_of_another_version_and_a_wrong_clock(client: Client, name: str) -> None:
    """What agents say of themselves in their heartbeats."""
    pool = await client.ensure_pool(name, nodes=0)
    now = time.time()
    beat = Heartbeat(
        "old", "node-1", "host-1", "boot", 1, "ready", 1, now, now, 60.0,
        versions={"batchflow": "0.0.1"}, clock_skew=95.0, trouble="the broker throttles",
    )  # fmt: skip
    await pool.runtime.out.put(heartbeat_blob("old"), beat.encode())
    await told(
        pool,
        f"1 of 1 agents are of batchflow 0.0.1, this is {own_version()}",
        "pool.start() brings this version",
        "the clock of node node-1 is 95 s ahead of the broker's",
        "the agent on host-1: the broker throttles",
    )


async def test_own_clock(client: Client, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose clock is off has its keys refused: that is told."""
    pool = await client.ensure_pool(name, nodes=0)
    right = time.time

    class Ahead:
        time = staticmethod(lambda: right() + 120)

    monkeypatch.setattr("batchflow.diagnosis.pool.time", Ahead)
    await told(pool, "the clock of this machine is 12", "s ahead of the services'", "set it (ntp)")


async def test_all_slots_busy(client: Client, name: str) -> None:
    """Work that waits for work."""
    pool = await client.ensure_pool(name, files=SLEEP, nodes=1)
    async with pool.session() as session:
        await session.submit_many("sleep.py", [600, 600, 600])
        await told(pool, "all 1 slots are busy and", "messages wait", "pool.resize()")


async def test_missing_file(client: Client, name: str) -> None:
    """A task whose file the bundle does not have."""
    pool = await client.ensure_pool(name, files=ECHO, nodes=0)
    async with pool.session() as session:
        task = await session.submit("ecco.py")
        text = str(await session.explain())
        assert "1 tasks want 'ecco.py', which is no file of the bundle" in text
        assert "the bundle has echo.py" in text
        await task.cancel()


async def test_missing_right(client: Client, name: str) -> None:
    """A key that may not look at the queue."""
    pool = await client.ensure_pool(name, nodes=0)
    (queue,) = pool.runtime.manifest.results_queues
    restricted = await client.connections.admin.connection_string(queue.entity, AGENT_RULE)
    settings = client.settings
    bus = replace(settings.servicebus, connection_string=restricted.partition(";EntityPath=")[0])
    async with Client(replace(settings, servicebus=bus)) as other:
        await told(
            await other.pool(name), "Service Bus cannot be asked", "servicebus.connection_string", "right"
        )


async def test_missing_queue(client: Client, name: str) -> None:
    """A queue that somebody deleted."""
    pool = await client.ensure_pool(name, nodes=0)
    await client.connections.admin.delete_queue(pool.runtime.manifest.task_queues[0].entity)
    await told(pool, "-tasks", "delete the pool and make it anew")


async def test_mailbox_in_use(client: Client, name: str) -> None:
    """A session that another client holds is refused by that client's name, with what to do."""
    pool = await client.ensure_pool(name, nodes=0)
    async with pool.session("mine"):
        with pytest.raises(MailboxInUse, match=r"process \d+: close it there, or take another") as caught:
            await pool.session("mine")
    assert "another session name" in problem_cause(caught.value).remedy


def test_throttling() -> None:
    """A throttled queue as a session's problem."""
    cause = problem_cause(Backpressure("cannot send: 50009, wait 2 seconds", retryable=True))
    assert (cause.severity, "Premium" in cause.remedy) == ("slow", True)


@pytest.fixture
async def throttled(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Client, Callable[[float], None]]]:
    """A client of a cloud in this process, and what throttles its Service Bus for so many seconds."""
    buses: list[ServiceBusServer] = []

    class Kept(ServiceBusServer):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            buses.append(self)

    monkeypatch.setattr(local_server, "ServiceBusServer", Kept)
    cloud = LocalCloud(nodes=1)
    settings = await cloud.start()
    try:
        async with Client(settings) as client:
            yield client, buses[0].throttle
    finally:
        await cloud.aclose()


async def test_throttled_queue(throttled: tuple[Client, Callable[[float], None]]) -> None:
    """A namespace that is busy is told as that, and the task that waits for it is not lost."""
    client, throttle = throttled
    pool = await client.ensure_pool("busy", files=ECHO)
    async with pool.session() as session:
        assert await session.run("echo.py", "before") == ["before"]
        throttle(60.0)
        task = await session.submit("echo.py", "after")
        await told(pool, "Service Bus cannot be asked", "50009", "submit more slowly", "Premium")
        with pytest.raises(PoolError, match="Premium"):
            await pool.wait_ready(2)
        throttle(0.0)
        assert await task == ["after"]


async def test_progress(client: Client, name: str) -> None:
    """A wait tells how far it is, each state once."""
    pool = await client.ensure_pool(name, nodes=1)
    lines: list[str] = []
    await pool.wait_ready(timeout=PATIENCE, progress=lines.append)
    assert lines[-1] == "1 of 1 nodes, 1 agents ready of 1"
    assert len(set(lines)) == len(lines)
