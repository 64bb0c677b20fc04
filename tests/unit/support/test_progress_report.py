"""Every wait for a pool tells how far it is: each state in a line, once in a row."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from batchflow import PoolSpec
from batchflow.client import Client
from batchflow.pool import Pool
from batchflow.pools import agent_launch
from batchflow.ports.compute import NodeInfo, PoolInfo
from batchflow.protocol.documents import Running
from batchflow.support.progress_report import Reporter, counted
from tests.support.agent import Agent
from tests.support.services import Doubles
from tests.support.waiting import eventually, within


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (
        "pools.agents",
        "pools.resize",
        "pools.reboot",
        "pools.provisioning",
        "diagnosis.readiness",
    ):
        monkeypatch.setattr(f"batchflow.{module}._POLL", 0.001)
    monkeypatch.setattr("batchflow.pools.provisioning._POLLS", (0.001, 0.001))


def test_repeated_line_is_reported_once() -> None:
    """What is said again is not news; nobody has to listen."""
    lines: list[str] = []
    for report in (Reporter(lines.append), Reporter(None)):
        for text in ("one", "one", "two", "one"):
            report(text)
    assert lines == ["one", "two", "one"]
    assert (counted(0, "node"), counted(1, "node"), counted(2, "node")) == ("0 nodes", "1 node", "2 nodes")


async def test_starting_reports_the_number_of_agents(pool: Pool) -> None:
    """How many agents; nothing when they live already."""
    lines: list[str] = []
    await pool.start(progress=lines.append)
    await pool.start(progress=lines.append)
    assert lines == ["starting 2 agents"]


async def test_archive_is_reported_when_made_and_uploaded(
    pool: Pool, doubles: Doubles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is uploaded once, whoever starts agents after that: its name is its content's."""
    archive = tmp_path / "agent-123.zip"
    archive.write_bytes(b"x" * 2_000_000)

    async def build(*_: object, **__: object) -> Path:
        return archive

    monkeypatch.setattr("batchflow.pools.agent_archive.build", build)
    agent = replace(pool.runtime.settings.agent, python=None, node_python="3.12", node_platform="somewhere")
    settings = replace(pool.runtime.settings, agent=agent)
    lines: list[str] = []
    for _ in range(2):
        context = agent_launch.LaunchContext(pool.runtime.manifest, pool.runtime.ctl, pool.runtime.out)
        await agent_launch.prepare(doubles.services, settings, context, Reporter(lines.append))
    making = "making the agents' archive, for Python 3.12 on somewhere"
    assert lines == [making, "uploading the agents' archive, 2 MB", making]


async def test_stopping_reports_the_agents_that_are_left(pool: Pool, agent: Agent) -> None:
    """Which agents are still there, and what they run, until the last has gone."""
    await pool.start()
    await agent.beat(running=(running("a"), running("b")))
    lines: list[str] = []
    stopping = asyncio.ensure_future(pool.stop(progress=lines.append))
    await eventually(lambda: lines)
    await agent.beat(running=(running("b"),))
    await eventually(lambda: len(lines) == 2)
    await agent.beat(state="exiting")
    await within(stopping)
    assert lines == [
        "1 agent still there, 2 tasks running",
        "1 agent still there, 1 task running",
        "ending 2 agents",
    ]


def running(label: str) -> Running:
    return Running(label, label, "c", "default", "x.py", 0.0)


async def test_shrinking_reports_the_agents_that_are_to_leave(pool: Pool, doubles: Doubles) -> None:
    """Which agents are still to leave, then that their nodes go."""
    doubles.compute.node_infos = [NodeInfo(name, "running", True) for name in ("node-1", "node-2")]
    idle, busy = Agent(doubles, pool, "idle"), Agent(doubles, pool, "busy")
    await idle.beat(node="node-1")
    await busy.beat(node="node-2", running=(running("a"),))
    lines: list[str] = []
    resizing = asyncio.ensure_future(pool.resize(0, progress=lines.append))
    await eventually(lambda: lines)
    await idle.beat(node="node-1", state="exiting")
    await eventually(lambda: len(lines) == 2)
    await busy.beat(node="node-2", state="exiting")
    await within(resizing)
    assert lines == [
        "2 agents still to leave, 1 task running there",
        "1 agent still to leave, 1 task running there",
        "removing 2 nodes",
    ]


async def test_resetting_reports_the_state_of_each_node(
    pool: Pool, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Node by node, each of its states; one that leaves meanwhile is told as well."""
    doubles.compute.node_infos = [NodeInfo(name, "idle", True) for name in ("a", "b")]
    states = iter(["rebooting", "starting", "starting", "idle"])

    async def nodes(_: str) -> list[NodeInfo]:
        first = (
            NodeInfo("a", next(states, "idle"), True) if rebooted == ["a"] else NodeInfo("a", "idle", True)
        )
        return [first] if rebooted == ["a", "b"] else [first, NodeInfo("b", "idle", True)]

    async def reboot(_: str, node: str) -> None:
        rebooted.append(node)

    rebooted: list[str] = []
    monkeypatch.setattr(doubles.compute, "nodes", nodes)
    monkeypatch.setattr(doubles.compute, "reboot_node", reboot)
    lines: list[str] = []
    await within(pool.repurpose({"x.py": b"1"}, reset=True, progress=lines.append))
    assert lines == [
        "node 1 of 2, a: is told to boot anew",
        "node 1 of 2, a: rebooting",
        "node 1 of 2, a: starting",
        "node 1 of 2, a: works again",
        "node 2 of 2, b: is told to boot anew",
        "node 2 of 2, b: has left the pool",
    ]


class Going:
    """A Batch pool that takes its time to be gone."""

    def __init__(self, doubles: Doubles, looks: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self._left: Iterator[int] = iter(range(looks, 0, -1))
        self._compute = doubles.compute
        self._pool = doubles.compute.pool
        monkeypatch.setattr(doubles.compute, "delete_pool", self.delete_pool)

    async def delete_pool(self, pool_id: str) -> bool:
        info = await self._pool(pool_id)
        self._compute.pool = self.pool  # type: ignore[method-assign]
        self._compute.nodes = self.nodes  # type: ignore[method-assign]
        self._info = replace(info, state="deleting")
        return True

    async def nodes(self, pool_id: str) -> list[NodeInfo]:
        return self._compute.node_infos

    async def pool(self, pool_id: str) -> PoolInfo:
        if (left := next(self._left, 0)) == 0:
            self._compute.known.pop(pool_id, None)
            self._compute.pool = self._pool  # type: ignore[method-assign]
            return await self._pool(pool_id)
        self._compute.node_infos = [NodeInfo(f"n{each}", "leavingpool", True) for each in range(left)]
        return replace(self._info, nodes=left)


async def test_deleting_reports_each_step(
    client: Client, pool: Pool, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sessions, what is beside it, then the machines until they are gone."""
    Going(doubles, 3, monkeypatch)
    await pool.session("open")
    lines: list[str] = []
    await within(client.delete_pool("demo", wait=True, progress=lines.append))
    assert lines == [
        "closing 1 session",
        "removing its agents, queues and files",
        "Batch removes the machines: 3 nodes left",
        "Batch removes the machines: 2 nodes left",
        "Batch removes the machines: 1 node left",
    ]
    assert doubles.compute.known == {}


async def test_ensuring_reports_a_deletion_it_waits_for(
    client: Client, pool: Pool, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool of the name that is on its way out is waited for, node by node."""
    Going(doubles, 2, monkeypatch)
    await pool.delete()
    lines: list[str] = []
    again = await within(client.ensure_pool("demo", progress=lines.append))
    assert again.origin.choice == "created"
    assert lines == [
        "pool 'demo' is being deleted, 2 nodes left",
        "pool 'demo' is being deleted, 1 node left",
    ]


async def test_attaching_reports_the_creator_it_waits_for(
    client: Client, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Batch pool of batchflow's without a manifest is somebody's who is making it, or was."""
    monkeypatch.setattr("batchflow.pools.provisioning._CREATION_TIMEOUT", 0.01)
    for find in (client.pool, client.ensure_pool):
        await client.connections.manifests.index.delete("pools/demo.json")
        lines: list[str] = []
        await within(find("demo", progress=lines.append))
        assert lines == ["another client creates pool 'demo', and has 0 s for it"]


async def test_creating_reports_another_client_that_was_quicker(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who loses the race says so, and uses what the winner made."""
    winner = await client.create_pool(PoolSpec("race", nodes=0))
    manifest = await client.connections.manifests.read("race")
    looks = iter([(None, None), (manifest, await client.connections.compute.pool("race"))])

    async def look(*_: object) -> object:
        return next(looks)

    monkeypatch.setattr("batchflow.pools.provisioning.PoolProvisioner._look", look)
    lines: list[str] = []
    loser = await within(client.ensure_pool("race", progress=lines.append))
    assert loser.runtime.manifest == winner.runtime.manifest
    assert lines == ["another client creates pool 'race'"]
