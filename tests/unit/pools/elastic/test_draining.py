"""Orders to drain: who is chosen, and what two clients' orders come to."""

from __future__ import annotations

from dataclasses import replace

import anyio
import pytest

from batchflow.pools.drain_orders import drain
from batchflow.pools.elastic.draining import least_busy, order_to_drain
from batchflow.ports.storage import Blob, Container
from batchflow.protocol import layout
from batchflow.protocol.documents import DrainOrder, Heartbeat, Running
from batchflow.testing import MemoryStorage
from node_agent.control.drain_orders import DrainWatcher
from tests.support.waiting import eventually

TASK = Running("a:1", "1", "c", "default", "x.py", 0.0)


def beat(number: int, tasks: int = 0, node: str = "") -> Heartbeat:
    """The heartbeat of an agent that runs so many tasks."""
    name = f"agent-{number}"
    place = node or f"node-{number}"
    return Heartbeat(name, place, "host", "boot", 1, "ready", 4, 0.0, 0.0, 5.0, running=(TASK,) * tasks)


@pytest.fixture
async def ctl() -> Container:
    storage = MemoryStorage()
    await storage.create_container("ctl")
    return storage.container("ctl")


async def order(ctl: Container) -> DrainOrder:
    return DrainOrder.decode((await ctl.get(layout.DRAIN_BLOB)).data)


def names(beats: list[Heartbeat]) -> list[str]:
    return [each.agent for each in beats]


def test_least_busy_agents_are_chosen_first() -> None:
    """Of those with as many tasks, the ones on spot nodes."""
    beats = [beat(1, 2), beat(2, 0), beat(3, 1), beat(4, 0)]
    assert names(least_busy(beats, 3, {"node-2"}, 0)) == ["agent-4", "agent-2", "agent-3"]
    assert least_busy(beats, 0, (), 0) == []


def test_dedicated_nodes_that_are_wanted_stay() -> None:
    """Busier agents on spot nodes leave instead."""
    beats = [beat(1, 0), beat(2, 0), beat(3, 4)]
    assert names(least_busy(beats, 3, {"node-1", "node-2"}, 1)) == ["agent-1", "agent-3"]


async def test_order_names_agents_and_nodes(ctl: Container) -> None:
    """Agents of earlier versions know their nodes alone, and a time that no task takes."""
    assert await order_to_drain(ctl, "job", [beat(1), beat(2, 1)], 1, (), 0) == ["agent-1"]
    found = await order(ctl)
    assert (found.job, found.agents, found.nodes) == ("job", ("agent-1",), ("node-1",))
    assert found.grace > 7 * 86400


async def test_agents_that_were_told_count_and_stay_named(ctl: Container) -> None:
    """They may not have read the order yet, which the next one replaces."""
    beats = [beat(number) for number in range(4)]
    await order_to_drain(ctl, "job", beats, 1, (), 0)
    assert await order_to_drain(ctl, "job", beats, 1, (), 0) == []
    assert await order_to_drain(ctl, "job", beats, 2, (), 0) == ["agent-1"]
    assert (await order(ctl)).agents == ("agent-0", "agent-1")
    assert await order_to_drain(ctl, "job", beats[1:], 2, (), 0) == ["agent-2"]
    assert (await order(ctl)).agents == ("agent-1", "agent-2")


async def test_a_second_order_goes_on_to_name_those_that_have_not_read_the_first(ctl: Container) -> None:
    """Two nodes that a person drains at once, or one during a resize."""
    beats = [beat(1), beat(2), beat(3)]
    await drain(ctl, "job", 60.0, beats[:1], beats)
    await drain(ctl, "job", 60.0, beats[1:2], beats)
    assert sorted((await order(ctl)).agents) == ["agent-1", "agent-2"]
    read = [replace(beat(1), state="draining"), *beats[1:]]
    await drain(ctl, "job", 60.0, beats[2:], read)
    assert sorted((await order(ctl)).agents) == ["agent-2", "agent-3"]


async def test_an_order_of_nodes_alone_stays_as_well(ctl: Container) -> None:
    """Earlier versions write such; one for all agents of the job includes any other."""
    beats = [beat(1), beat(2)]
    await ctl.put(layout.DRAIN_BLOB, DrainOrder("job", 9.0, nodes=("node-1",)).encode())
    await drain(ctl, "job", 60.0, beats[1:], beats)
    assert sorted((await order(ctl)).agents) == ["agent-1", "agent-2"]
    await ctl.put(layout.DRAIN_BLOB, DrainOrder("job", 9.0).encode())
    await drain(ctl, "job", 60.0, beats[1:], beats)
    assert await order(ctl) == DrainOrder("job", 9.0)


async def test_an_order_never_shortens_the_time_of_an_earlier_one(ctl: Container) -> None:
    """The elastic pool names its agents again."""
    beats = [beat(1), beat(2)]
    await order_to_drain(ctl, "job", beats[:1], 1, (), 0)
    await drain(ctl, "job", 60.0, beats[1:], beats)
    assert ((await order(ctl)).agents, (await order(ctl)).grace) == (("agent-2",), 60.0)


async def test_an_order_that_another_client_writes_meanwhile_is_read_too(
    ctl: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document is replaced only as it was read."""
    beats, get = [beat(1), beat(2)], ctl.get

    async def overtaken(name: str) -> Blob:
        monkeypatch.undo()
        try:
            return await get(name)
        finally:
            await drain(ctl, "job", 60.0, beats[:1], beats)

    monkeypatch.setattr(ctl, "get", overtaken)
    await drain(ctl, "job", 60.0, beats[1:], beats)
    assert sorted((await order(ctl)).agents) == ["agent-1", "agent-2"]


@pytest.mark.parametrize("data", [DrainOrder("earlier", 9.0, agents=("agent-1",)).encode(), b"no order"])
async def test_order_that_is_over_is_replaced(ctl: Container, data: bytes) -> None:
    """Of an earlier job of agents, or of a version that this one does not know."""
    await ctl.put(layout.DRAIN_BLOB, data)
    assert await order_to_drain(ctl, "job", [beat(1)], 1, (), 0) == ["agent-1"]


async def test_only_named_agents_heed_an_order(ctl: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the next one that starts on the same node."""
    monkeypatch.setenv("AZ_BATCH_JOB_ID", "job")
    monkeypatch.setenv("AZ_BATCH_NODE_ID", "node")
    await order_to_drain(ctl, "job", [beat(1, node="node")], 1, (), 0)
    drained: list[str] = []

    async def look(agent: str) -> None:
        await DrainWatcher(ctl, agent, 0.02, lambda _: drained.append(agent)).run()

    async with anyio.create_task_group() as group:
        group.start_soon(look, "agent-2")
        group.start_soon(look, "agent-1")
        await eventually(lambda: drained)
        group.cancel_scope.cancel()
    assert drained == ["agent-1"]
