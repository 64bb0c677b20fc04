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


async def test_explanation_names_an_allocation_failure(client: Client, faults: Faults, name: str) -> None:
    """Azure cannot give the nodes."""
    await faults.allocation_failure(name)
    pool = await client.ensure_pool(name, nodes=2)
    await fails(pool, AllocationFailed, "AllocationFailed", "another VM size or fewer nodes")


async def test_explanation_names_the_core_quota(client: Client, faults: Faults, name: str) -> None:
    """One node of two came, which is enough for a wait for one node."""
    await faults.core_quota(name, nodes=1)
    pool = await client.ensure_pool(name, nodes=2)
    await fails(pool, QuotaExceeded, "AccountCoreQuotaReached", "raise the account's quota")
    await pool.wait_ready(1, timeout=PATIENCE)


async def test_pool_beyond_the_quota_is_refused_and_leaves_nothing(
    client: Client, faults: Faults, name: str
) -> None:
    """The error says what to do."""
    before = await client.connections.storage.containers("bf-")
    await faults.account(reached=["pools"])
    try:
        with pytest.raises(QuotaExceeded, match="PoolQuotaReached"):
            await client.ensure_pool(name, nodes=1)
    finally:
        await faults.account()
    assert await client.connections.storage.containers("bf-") == before


async def test_job_quota_becomes_a_problem_of_the_session(client: Client, faults: Faults, name: str) -> None:
    """Agents cannot have a job; the problem says what to do."""
    pool = await client.ensure_pool(name, nodes=1)
    await faults.account(reached=["jobs"])
    try:
        async with pool.session() as session:

            async def look() -> str:
                return str(await session.explain())

            await until(look, "ActiveJobAndScheduleQuotaReached", "what to do:")
    finally:
        await faults.account()


async def test_explanation_says_that_nodes_are_starting(client: Client, faults: Faults, name: str) -> None:
    """A wait that runs out of time says so."""
    await faults.slow_start(name, 600)
    pool = await client.ensure_pool(name, nodes=1)
    await pool.start()
    await told(pool, "is starting", "wait: it takes minutes on Azure", "agent-0 waits for a node")
    with pytest.raises(TimeoutError, match="is starting"):
        await pool.wait_ready(timeout=0.5)


async def test_explanation_names_a_few_of_many_alike_nodes(client: Client, faults: Faults, name: str) -> None:
    """The other nodes and agents are counted."""
    await faults.slow_start(name, 600)
    pool = await client.ensure_pool(name, nodes=5)
    await pool.start()
    text = await told(
        pool, "2 more nodes are starting", "agent-0, agent-1, agent-2 and 2 more wait for a node"
    )
    assert text.count("is starting") == 3


async def test_explanation_has_the_end_of_a_failed_start_task(
    client: Client, faults: Faults, name: str
) -> None:
    """The end of its output is in the explanation."""
    await faults.start_task_failure(name, stderr="E: Unable to locate package libfoo", exit_code=100)
    pool = await client.ensure_pool(name, nodes=1)
    await fails(pool, StartTaskFailed, "the start task failed on node", "Unable to locate package libfoo")


async def test_session_is_told_soon_that_a_package_is_missing_on_this_machine(
    client: Client, name: str
) -> None:
    """The local cloud installs nothing: the tasks' waiter learns what is missing, and how to install it."""
    spec = PoolSpec(name, nodes=1, apt=("batchflow-absent",))
    pool = await client.ensure_pool(name, files=ECHO, spec=spec)
    async with pool.session() as session:
        with pytest.raises(StartTaskFailed, match="sudo apt-get install batchflow-absent"):
            await session.run("echo.py", "x")


async def test_explanation_has_the_reason_of_an_unusable_node(
    client: Client, faults: Faults, name: str
) -> None:
    """The reason is that of Batch."""
    pool = await client.ensure_pool(name, nodes=1)
    await pool.wait_ready(timeout=PATIENCE)
    await faults.unusable(name, code="DiskFull")
    await told(pool, "is unusable: DiskFull: There is not enough disk space", "reboot the node")
    with pytest.raises(NodeUnusable, match="DiskFull"):
        await pool.wait_ready(2, timeout=PATIENCE)


async def test_preempted_node_comes_back_with_its_agent(client: Client, faults: Faults, name: str) -> None:
    """Azure took a spot node away; the session loses nothing."""
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


async def test_explanation_names_a_lost_node(client: Client, faults: Faults, name: str) -> None:
    """Batch hears nothing of the node any more."""
    pool = await client.ensure_pool(name, nodes=1)
    await pool.wait_ready(timeout=PATIENCE)
    await faults.lose(name)
    await told(pool, "is unknown: Batch has no contact to it", "reboot it")


async def test_explanation_names_a_retired_image(client: Client, faults: Faults, name: str) -> None:
    """A new pool with that image is refused."""
    pool = await client.ensure_pool(name, nodes=0)
    await faults.account(retired=["canonical:ubuntu-24_04-lts:server"])
    try:
        await told(pool, "canonical:ubuntu-24_04-lts:server is past its end of life", "of another image")
        with pytest.raises(ConfigurationError, match="end of this one's life was 2020-01-01"):
            await client.ensure_pool(f"{name}-2")
    finally:
        await faults.account()


async def test_explanation_says_that_a_pool_has_no_nodes(client: Client, name: str) -> None:
    """It says how to get some."""
    await told(await client.ensure_pool(name, nodes=0), "the pool has no nodes", "pool.resize(2)")


async def test_waiting_for_more_nodes_than_asked_for_fails(client: Client, name: str) -> None:
    """Waiting for nodes that nobody asked for ends at once."""
    pool = await client.ensure_pool(name, nodes=1)
    with pytest.raises(PoolError, match=r"is to have 1 node, and 3 ready ones are waited for") as caught:
        await pool.wait_ready(3)
    assert "await pool.resize(3)" in str(caught.value)


async def test_pool_with_a_formula_cannot_be_resized(client: Client, name: str) -> None:
    """The explanation names the formula, and the pool stays as it was."""
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
        with pytest.raises(PoolError, match="did not write"):
            await pool.resize(2)
        await pool.delete()
        assert (await sdk.get_pool(name)).as_dict() == before


async def test_missing_interpreter_ends_the_wait_at_once(client: Client, name: str) -> None:
    """The nodes do not have the interpreter of the agents."""
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


async def test_explanation_has_the_last_words_of_an_agent_that_ends_at_once(
    client: Client, name: str, tmp_path: Path
) -> None:
    """The interpreter has no agent, and Batch starts it again and again."""
    python = program(tmp_path / "python3", "echo 'No module named node_agent' >&2; exit 1")
    settings = client.settings
    async with Client(replace(settings, agent=replace(settings.agent, python=python))) as other:
        pool = await other.ensure_pool(name, nodes=1)
        await fails(pool, PoolError, "times in a row", "No module named node_agent", "agent.python")


async def test_explanation_has_the_exception_of_an_agent_in_a_crash_loop(
    client: Client, name: str, tmp_path: Path
) -> None:
    """Its supervisor starts it again and again; the exception comes with its place in the source."""
    (tmp_path / "orjson.py").write_text("raise ImportError('this orjson is for another machine')\n")
    python = program(tmp_path / "python3", f'PYTHONPATH={tmp_path} exec {sys.executable} "$@"')
    settings = client.settings
    async with Client(replace(settings, agent=replace(settings.agent, python=python))) as other:
        pool = await other.ensure_pool(name, nodes=1)
        text = await fails(pool, PoolError, "times in a row", "agent_crashed", "agent_died: exit_code 1")
        assert "ImportError: this orjson is for another machine" in text
        assert "orjson.py" in text


async def test_explanation_names_another_version_and_a_wrong_clock_of_agents(
    client: Client, name: str
) -> None:
    """Both are read from the agents' heartbeats."""
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


async def test_wrong_clock_of_the_client_is_named(
    client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The services refuse the keys of a machine whose clock is off."""
    pool = await client.ensure_pool(name, nodes=0)
    right = time.time

    class Ahead:
        time = staticmethod(lambda: right() + 120)

    monkeypatch.setattr("batchflow.diagnosis.pool.time", Ahead)
    await told(pool, "the clock of this machine is 12", "s ahead of the services'", "set it (ntp)")


async def test_explanation_says_that_all_slots_are_busy(client: Client, name: str) -> None:
    """Tasks wait for other tasks."""
    pool = await client.ensure_pool(name, files=SLEEP, nodes=1)
    async with pool.session() as session:
        await session.submit_many("sleep.py", [600, 600, 600])
        await told(pool, "all 1 slots are busy and", "messages wait", "pool.resize()")


async def test_explanation_names_a_file_that_the_bundle_lacks(client: Client, name: str) -> None:
    """A task's command is not in the bundle."""
    pool = await client.ensure_pool(name, files=ECHO, nodes=0)
    async with pool.session() as session:
        task = await session.submit("ecco.py")
        text = str(await session.explain())
        assert "1 tasks want 'ecco.py', which is no file of the bundle" in text
        assert "the bundle has echo.py" in text
        await task.cancel()


async def test_explanation_names_a_missing_right_on_the_queue(client: Client, name: str) -> None:
    """The key may not look at the queue."""
    pool = await client.ensure_pool(name, nodes=0)
    (queue,) = pool.runtime.manifest.results_queues
    restricted = await client.connections.admin.connection_string(queue.entity, AGENT_RULE)
    settings = client.settings
    bus = replace(settings.servicebus, connection_string=restricted.partition(";EntityPath=")[0])
    async with Client(replace(settings, servicebus=bus)) as other:
        await told(
            await other.pool(name), "Service Bus cannot be asked", "servicebus.connection_string", "right"
        )


async def test_explanation_names_a_deleted_queue(client: Client, name: str) -> None:
    """Another program deleted the queue."""
    pool = await client.ensure_pool(name, nodes=0)
    await client.connections.admin.delete_queue(pool.runtime.manifest.task_queues[0].entity)
    await told(pool, "-tasks", "delete the pool and make it anew")


async def test_opening_a_held_session_names_its_holder(client: Client, name: str) -> None:
    """The error says what to do."""
    pool = await client.ensure_pool(name, nodes=0)
    async with pool.session("mine"):
        with pytest.raises(MailboxInUse, match=r"process \d+: close it there, or take another") as caught:
            await pool.session("mine")
    assert "another session name" in problem_cause(caught.value).remedy


def test_throttling_becomes_a_problem_of_the_session() -> None:
    """The queue of the session is throttled."""
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


async def test_explanation_names_a_busy_namespace(throttled: tuple[Client, Callable[[float], None]]) -> None:
    """The task that waits for it is not lost."""
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


async def test_wait_reports_each_state_once(client: Client, name: str) -> None:
    """The reports say how far the pool is."""
    pool = await client.ensure_pool(name, nodes=1)
    lines: list[str] = []
    await pool.wait_ready(timeout=PATIENCE, progress=lines.append)
    assert lines[-1] == "1 of 1 nodes, 1 agents ready of 1"
    assert len(set(lines)) == len(lines)
