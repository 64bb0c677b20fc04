"""A pool against in-memory doubles: its agents, its jobs, its files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from batchflow.client import Client
from batchflow.errors import (
    AllocationFailed,
    ConfigurationError,
    JobExists,
    JobNotFound,
    NodeUnusable,
    PoolError,
    PoolNotFound,
    SessionClosed,
    StartTaskFailed,
    StorageError,
)
from batchflow.model import PoolSpec
from batchflow.pool import Pool
from batchflow.ports.compute import BatchTask, BatchTaskInfo, NodeInfo, ReportedFault
from batchflow.protocol.documents import AgentConfig
from tests.support.agent import Agent
from tests.support.services import Doubles
from tests.support.waiting import BOUND, eventually, within


def agent_ids(doubles: Doubles, pool: Pool) -> list[str]:
    return [task.id for task in doubles.compute.jobs.get(pool.runtime.manifest.agents_job, [])]


# ---- agents


async def test_starting_is_idempotent(pool: Pool, doubles: Doubles) -> None:
    """One agent for each node, however often and by how many it is asked."""
    await asyncio.gather(pool.start(), pool.start())
    await pool.start()
    assert agent_ids(doubles, pool) == ["agent-0", "agent-1"]


async def test_resized_pool_starts_agents_on_new_nodes(pool: Pool, doubles: Doubles) -> None:
    """At the resize, where there are agents or sessions; else with the next session.

    Where sessions were open elsewhere only, nobody used to start agents on the nodes that were added.
    """
    await pool.resize(3)
    assert agent_ids(doubles, pool) == []
    await pool.start()
    assert len(agent_ids(doubles, pool)) == 3
    await pool.resize(4)
    assert agent_ids(doubles, pool) == ["agent-0", "agent-1", "agent-2", "agent-3"]
    async with pool.session("c"):
        await pool.resize(5)
        assert len(agent_ids(doubles, pool)) == 5


async def test_first_agents_of_a_created_pool_start_without_reading_it_again(
    pool: Pool, client: Client, doubles: Doubles
) -> None:
    """Its files are not fetched, nor its containers' policies set again; who found the pool does both."""
    control = doubles.storage.content[pool.runtime.manifest.ctl]
    for name in [name for name in control if name.startswith(("files/", "bundles/"))]:
        del control[name]
    doubles.storage.policies.clear()
    await pool.start()
    (config,) = [name for name in control if name.startswith("agent/")]
    assert len(AgentConfig.decode(control.pop(config).data).brought) == 2  # the list, and its file
    assert doubles.storage.policies == {}
    found = await client.pool(pool.id)
    await found.resize(3)
    await found.start()
    (config,) = [name for name in control if name.startswith("agent/")]
    assert AgentConfig.decode(control.pop(config).data).brought == {}
    assert doubles.storage.policies.keys() == {found.runtime.ctl.name, found.runtime.out.name}


async def test_missing_agent_is_started_under_a_free_task_id(pool: Pool, doubles: Doubles) -> None:
    """Somebody deleted the task of the first one: the second's name is taken, and stays its own.

    The number of the tasks used to be taken for the next free number: nothing was started, and nothing said.
    """
    await pool.start()
    await doubles.compute.delete_task(pool.runtime.manifest.agents_job, "agent-0")
    await pool.start()
    assert agent_ids(doubles, pool) == ["agent-1", "agent-2"]


async def test_agents_that_all_ended_are_started_in_a_new_batch_job(
    pool: Pool, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For Batch has ended the first one."""
    await pool.start()
    ended = pool.runtime.manifest.agents_job
    plain = doubles.compute.tasks

    async def tasks(job_id: str) -> list[BatchTaskInfo]:
        infos = await plain(job_id)
        return [replace(info, state="completed") for info in infos] if job_id == ended else infos

    monkeypatch.setattr(doubles.compute, "tasks", tasks)
    await pool.start()
    assert pool.runtime.manifest.agents_job != ended
    assert agent_ids(doubles, pool) == ["agent-0", "agent-1"]


async def test_stopping_deletes_the_tasks_of_living_agents(
    pool: Pool, doubles: Doubles, connect: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that another client has started since; idempotent; they can be started again."""
    monkeypatch.setattr("batchflow.pools.agents._DRAIN_SLACK", 0.01)  # these never write a heartbeat
    async with connect() as other_client:
        other = await other_client.pool("demo")
        await other.start()
        await other.stop()
        await other.start()
        await pool.stop()
        assert not any(doubles.compute.jobs.values())
        await pool.stop()
        await other.start()
        await pool.start()
        assert sum(map(len, doubles.compute.jobs.values())) == 2


async def test_stopping_waits_for_the_first_heartbeat_of_each_agent(
    pool: Pool, agent: Agent, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new agent beside one that has written heartbeats for long; it may run tasks by then."""
    await pool.start()
    monkeypatch.setattr("batchflow.pools.agents._POLL", 0.001)
    monkeypatch.setattr("batchflow.pools.agents._DRAIN_SLACK", BOUND)
    plain, looks, lines = doubles.compute.tasks, [0], list[str]()

    async def tasks(job_id: str) -> list[BatchTaskInfo]:
        looks[0] += 1
        infos = await plain(job_id)
        return [replace(info, node=f"node-{number}") for number, info in enumerate(infos, 1)]

    monkeypatch.setattr(doubles.compute, "tasks", tasks)
    stopping = asyncio.create_task(pool.stop(progress=lines.append))
    await eventually(lambda: looks[0] > 2 or stopping.done())
    await agent.beat(state="exiting")
    seen = looks[0]
    await eventually(lambda: looks[0] > seen + 2 or stopping.done())
    assert not stopping.done()
    new = Agent(doubles, pool, "agent-2")
    await new.beat(node="node-2")
    await eventually(lambda: "1 agent still there, 0 tasks running" in lines)
    await new.beat(node="node-2", state="exiting")
    await within(stopping)
    assert agent_ids(doubles, pool) == []


async def test_starting_raises_what_batch_refuses(pool: Pool, doubles: Doubles) -> None:
    """The error is Batch's."""
    doubles.compute.fault = PoolError("the quota is used up")
    with pytest.raises(PoolError, match="quota"):
        await pool.start()


async def test_nodes_are_listed_with_their_agents(pool: Pool, agent: Agent, doubles: Doubles) -> None:
    """What Batch says and what the heartbeat says."""
    doubles.compute.node_infos = [NodeInfo("node-1", "running", True), NodeInfo("node-2", "starting", False)]
    first, second = await pool.nodes()
    assert (first.host, first.slots, first.agent) == ("host-1", 2, "ready")
    assert (second.host, second.slots, second.agent, second.dedicated) == (None, 0, None, False)


async def test_heartbeat_expires_by_the_storage_clock(pool: Pool, agent: Agent, doubles: Doubles) -> None:
    """Three intervals; one that says that it exits is no agent any more."""
    assert len(await pool.heartbeats()) == 1
    await agent.beat(interval=0.0)
    assert await pool.heartbeats() == []
    await agent.beat(state="exiting")
    assert await pool.heartbeats() == []


@pytest.mark.parametrize("data", [b"", b"{}", b'{"v":1,"agent":5}', b'{"v":9}'])
async def test_undecodable_heartbeat_is_ignored(
    pool: Pool, agent: Agent, doubles: Doubles, data: bytes
) -> None:
    """Code on a node can write what it likes there."""
    await doubles.storage.write("agents/forged.json", data, pool.runtime.manifest.out)
    assert [beat.agent for beat in await pool.heartbeats()] == ["agent-1"]


# ---- waiting for it


async def test_wait_ready_returns_when_the_wanted_agents_are_ready(
    pool: Pool, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All nodes that are wanted, or as many as one asks for; the agents are started."""
    monkeypatch.setattr("batchflow.diagnosis.readiness._POLL", 0.001)
    one, two = Agent(doubles, pool, "one"), Agent(doubles, pool, "two")
    await one.beat()
    await within(pool.wait_ready(1))
    assert len(agent_ids(doubles, pool)) == 2
    waiting = asyncio.ensure_future(pool.wait_ready())
    await two.beat(state="starting")
    await eventually(lambda: doubles.storage.calls.count(("get", "agents/two.json")) > 3)
    assert not waiting.done()
    await two.beat()
    await within(waiting)


@pytest.mark.parametrize("state", ["unusable", "unknown", "preempted", "rebooting"])
async def test_agent_of_a_lost_node_is_not_ready(
    pool: Pool, doubles: Doubles, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """Its last heartbeat may still be fresh: Batch knows better."""
    monkeypatch.setattr("batchflow.diagnosis.readiness._POLL", 0.001)
    await Agent(doubles, pool).beat()
    doubles.compute.node_infos = [NodeInfo("node-1", state, True), NodeInfo("node-2", "idle", True)]
    lines: list[str] = []
    waiting = asyncio.ensure_future(pool.wait_ready(1, progress=lines.append))
    await eventually(lambda: len(lines) > 1)
    assert "0 agents ready" in lines[1]
    doubles.compute.node_infos = [NodeInfo("node-1", "running", True)]
    await within(waiting)


async def test_agents_that_exit_during_wait_ready_are_started_again(
    pool: Pool, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was idle for its time ends in order, and nothing has failed: it was waited for without end."""
    monkeypatch.setattr("batchflow.diagnosis.readiness._POLL", 0.001)
    await pool.start()
    first, plain = pool.runtime.manifest.agents_job, doubles.compute.tasks

    async def tasks(job_id: str) -> list[BatchTaskInfo]:
        infos = await plain(job_id)
        gone = job_id == first and over
        return [replace(info, state="completed", exit_code=0) for info in infos] if gone else infos

    over = False
    monkeypatch.setattr(doubles.compute, "tasks", tasks)
    waiting = asyncio.ensure_future(pool.wait_ready(1))
    await eventually(lambda: doubles.storage.calls)
    over = True
    await eventually(lambda: pool.runtime.manifest.agents_job != first and agent_ids(doubles, pool))
    await Agent(doubles, pool).beat()
    await within(waiting)


async def test_wait_ready_ends_at_its_timeout(pool: Pool) -> None:
    """With the explanation."""
    with pytest.raises(TimeoutError, match="no agent"):
        await within(pool.wait_ready(timeout=0.01))


FAILURES: list[tuple[dict[str, Any], list[NodeInfo], type[PoolError], str]] = [
    ({"resize_errors": (ReportedFault("AllocationFailed", "no cores"),)}, [], AllocationFailed, "no cores"),
    (
        {},
        [NodeInfo("n", "starttaskfailed", True, (), ReportedFault("x", "exit 3"))],
        StartTaskFailed,
        "exit 3",
    ),
    ({}, [NodeInfo("n", "unusable", True, (ReportedFault("x", "disk broke"),))], NodeUnusable, "disk broke"),
]


@pytest.mark.parametrize(("change", "nodes", "kind", "words"), FAILURES)
async def test_wait_ready_fails_at_once_when_it_can_no_longer_succeed(
    pool: Pool,
    doubles: Doubles,
    change: dict[str, Any],
    nodes: list[NodeInfo],
    kind: type[PoolError],
    words: str,
) -> None:
    """Not after the timeout; and `explain` says the same."""
    doubles.compute.known["demo"] = replace(doubles.compute.known["demo"], **change)
    doubles.compute.node_infos = nodes
    with pytest.raises(kind, match=words):
        await within(pool.wait_ready())
    if kind is not NodeUnusable:
        assert words in str(await pool.explain())


async def test_explain_reports_services_that_do_not_answer(pool: Pool, doubles: Doubles) -> None:
    """What cannot be asked is a cause by itself."""
    doubles.compute.fault = PoolError("Batch is down")
    doubles.storage.faults["get", "agents/"] = [StorageError("Blob is down")] * 5
    await Agent(doubles, pool).beat()
    await doubles.broker.delete_queue(pool.runtime.manifest.task_queues[0].entity)
    text = str(await pool.explain())
    for words in ("Batch is down", "Blob is down", "queue"):
        assert words in text


# ---- files


async def test_repurposed_bundle_is_used_by_later_sessions_alone(
    pool: Pool, agent: Agent, doubles: Doubles, connect: Callable[..., Client]
) -> None:
    """By whatever client; those that are open keep what they have, and no agent is touched."""
    async with connect() as other_client, pool.session("before") as before:
        other = await other_client.pool("demo")
        await before.flush()
        await eventually(lambda: agent_ids(doubles, pool))  # the session starts them beside its opening
        started = agent_ids(doubles, pool)
        await pool.repurpose({"new.py": b"new"})
        assert agent_ids(doubles, pool) == started
        async with pool.session("after") as after, other.session("elsewhere") as elsewhere:
            for session in (before, after, elsewhere):
                await session.submit("x.py")
                await session.flush()
            bundles = [item.bundle for item in await agent.take(3)]
    assert bundles[0] != bundles[1] == bundles[2]


async def test_concurrent_changes_of_the_manifest_are_all_kept(
    pool: Pool, connect: Callable[..., Client]
) -> None:
    """Neither change is lost."""
    async with connect() as other_client:
        other = await other_client.pool("demo")
        await asyncio.gather(*(each.repurpose({"f": bytes([n])}) for n in range(4) for each in (pool, other)))
        generation = pool.runtime.manifest.agents_job
        await asyncio.gather(pool.stop(), other.repurpose({"last": b""}))
        await pool.runtime.refresh()
        await other.runtime.refresh()
        assert pool.runtime.manifest == other.runtime.manifest
        assert pool.runtime.manifest.agents_job != generation


# ---- jobs


async def test_jobs(pool: Pool) -> None:
    """Made, found, listed, closed, deleted."""
    job = await pool.create_job("one")
    with pytest.raises(JobExists, match="'one'"):
        await pool.create_job("one")
    assert (await pool.job("one")).created_at == job.created_at
    await pool.create_job("two")
    await job.close()
    await job.close()
    assert sorted([(each.name, each.state) async for each in pool.jobs()]) == [
        ("one", "closed"),
        ("two", "open"),
    ]
    await pool.delete_job("one")
    await pool.delete_job("one")
    with pytest.raises(JobNotFound, match="'one'"):
        await pool.job("one")
    with pytest.raises(JobNotFound):
        await job.close()
    await pool.delete_all_jobs()
    assert [each async for each in pool.jobs()] == []
    for name in ("", "a/b", "x" * 61):
        with pytest.raises(ConfigurationError, match="job name"):
            await pool.create_job(name)


async def test_session_creates_its_job(pool: Pool) -> None:
    """If there is none of that name."""
    async with pool.session("c", job="made"):
        assert (await pool.job("made")).state == "open"
    async with pool.session("c"):
        assert (await pool.job("default")).state == "open"


async def test_undecodable_job_document_is_left_out_of_the_list(pool: Pool, doubles: Doubles) -> None:
    """Another program, or a newer batchflow, wrote it."""
    await pool.create_job("one")
    await doubles.storage.write("jobs/odd.json", b"{}", pool.runtime.manifest.ctl)
    assert [job.name async for job in pool.jobs()] == ["one"]


# ---- the end


async def test_deleted_pool_closes_its_sessions_and_leaves_nothing(
    client: Client, pool: Pool, doubles: Doubles
) -> None:
    """Sessions of any object that stands for it; who waits is told why."""
    same = await client.pool("demo")
    sessions = [await pool.session("a"), await same.session("b")]
    waiting = [asyncio.ensure_future((await session.submit("x.py")).outcome()) for session in sessions]
    await asyncio.sleep(0)
    await within(pool.delete())
    for task in waiting:
        with pytest.raises(SessionClosed, match="'demo' was deleted"):
            await within(task)
    assert doubles.compute.known == {}
    assert doubles.compute.jobs == {}
    assert await doubles.broker.queues() == []
    assert await doubles.storage.containers() == ["batchflow"]
    assert doubles.storage.names("") == []
    with pytest.raises(PoolNotFound):
        await same.start()
    await within(pool.delete())


async def test_session_of_a_deleted_pool_cannot_be_opened(pool: Pool, connect: Callable[..., Client]) -> None:
    """Is refused with that reason, not with a missing queue."""
    async with connect() as other:
        await other.delete_pool("demo")
    with pytest.raises(PoolNotFound, match="deleted"):
        await within(pool.session("c")._open())


async def test_resizing_to_a_negative_number_is_refused(pool: Pool) -> None:
    """Before Batch is asked."""
    with pytest.raises(ConfigurationError, match="negative"):
        await pool.resize(-1)


async def test_agents_run_in_the_container_image_of_the_pool(client: Client, doubles: Doubles) -> None:
    """Of a pool with a container image every agent's task has it; what the image has not is not asked for."""
    doubles.compute.containers = True
    pool = await client.create_pool(PoolSpec("boxed", nodes=2, container="registry.example/tasks:1"))
    await pool.start()
    tasks = doubles.compute.jobs[pool.runtime.manifest.agents_job]
    assert [task.container for task in tasks] == ["registry.example/tasks:1"] * 2
    await (await client.pool("boxed")).resize(3)
    assert {task.container for task in doubles.compute.jobs[pool.runtime.manifest.agents_job]} == {
        "registry.example/tasks:1"
    }


def test_agent_task_takes_all_slots_of_its_node() -> None:
    """One agent to a node, restarted by Batch without end."""
    from batchflow.pools.agent_job import agent_tasks
    from batchflow.pools.agent_launch import LaunchCommand

    tasks = agent_tasks(LaunchCommand("run", ()), 3, 2, 4)
    assert tasks == [BatchTask(f"agent-{n}", "run", slots=4, retries=-1) for n in (3, 4)]
