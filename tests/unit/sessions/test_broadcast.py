"""A broadcast, from its client's side, against doubles of the services."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from batchflow.errors import BlobNotFound, ConfigurationError, NodeUnreached, TaskTimeout
from batchflow.pool import Pool
from batchflow.ports.compute import NodeInfo
from batchflow.protocol import layout
from batchflow.protocol.broadcasts import BROADCAST, BroadcastOrder, Broadcasts
from batchflow.protocol.documents import Heartbeat
from batchflow.sessions.broadcast import NodeStanding, standing_of
from tests.support.agent import Agent
from tests.support.services import Doubles
from tests.support.waiting import eventually, within

TAKES = {"accepts": (BROADCAST,), "interval": 0.1}


async def orders(pool: Pool) -> tuple[BroadcastOrder, ...]:
    try:
        return Broadcasts.decode((await pool.runtime.ctl.get(layout.BROADCAST_BLOB)).data).orders
    except BlobNotFound:
        return ()


def nodes_are(doubles: Doubles, **states: str) -> None:
    doubles.compute.node_infos = [
        NodeInfo(name.replace("_", "-"), state, dedicated=True) for name, state in states.items()
    ]


@asynccontextmanager
async def beating(*agents: tuple[Agent, dict[str, Any]]) -> AsyncIterator[None]:
    """Let these agents live, each with these fields of its heartbeat."""

    async def beat() -> None:
        while True:
            for agent, fields in agents:
                await agent.beat(**{**TAKES, **fields})
            await asyncio.sleep(0.05)

    task = asyncio.create_task(beat())
    try:
        await asyncio.sleep(0)
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_each_node_gets_the_task_once_and_nothing_is_queued(
    pool: Pool, doubles: Doubles, agent: Agent
) -> None:
    """Results come by node, in any order; then the order is taken back. A broken node is named at once."""
    nodes_are(doubles, node_1="running", node_2="running", node_3="unusable")
    other = Agent(doubles, pool, "agent-2")
    async with beating((agent, {}), (other, {"node": "node-2"})):
        call = asyncio.create_task(pool.broadcast("x.py", "disk free"))
        await eventually(lambda: orders(pool))
        (order,) = await orders(pool)
        assert sorted(order.nodes) == ["node-1", "node-2"]
        for name in ("node-2", "node-1"):
            item = order.item(name)
            assert item is not None
            assert item.params == ["disk", "free"]
            await agent.answer(item, value=name, host=f"host of {name}")
        results = await within(call)
    assert list(results) == ["node-1", "node-2", "node-3"]
    assert [result.value for result in results.values()] == ["node-1", "node-2", None]
    assert [result.node for result in results.values()] == ["host of node-1", "host of node-2", None]
    assert isinstance(results["node-3"].exception(), NodeUnreached)
    assert "unusable" in str(results["node-3"].exception())
    assert await orders(pool) == ()
    assert await agent.take_message(0.0) == []


async def test_nodes_without_an_agent_are_named_and_not_waited_for(
    pool: Pool, doubles: Doubles, agent: Agent
) -> None:
    """One never had an agent, the other's leaves meanwhile."""
    nodes_are(doubles, node_1="running", node_2="idle")
    async with beating((agent, {})):
        call = asyncio.create_task(pool.broadcast("x.py"))
        await eventually(lambda: orders(pool))
    await agent.beat(**{**TAKES, "state": "exiting"})
    results = await within(call)
    assert [result.kind for result in results.values()] == ["NodeUnreached", "NodeUnreached"]
    assert all("no agent" in str(result.error) for result in results.values())


async def test_a_node_that_gives_no_result_in_time_is_named(
    pool: Pool, doubles: Doubles, agent: Agent
) -> None:
    nodes_are(doubles, node_1="running")
    async with beating((agent, {})):
        results = await within(pool.broadcast("x.py", timeout=0.3))
    assert isinstance(results["node-1"].exception(), TaskTimeout)
    assert await orders(pool) == ()


async def test_a_cancelled_call_takes_its_order_back_and_leaves_that_of_another(
    pool: Pool, doubles: Doubles, agent: Agent
) -> None:
    nodes_are(doubles, node_1="running")
    async with beating((agent, {})):
        first = asyncio.create_task(pool.broadcast("x.py", 1))
        second = asyncio.create_task(pool.broadcast("x.py", 2))

        async def both() -> bool:
            return len(await orders(pool)) == 2

        await eventually(both)
        first.cancel()
        await asyncio.wait([first])
        (left,) = await orders(pool)
        item = left.item("node-1")
        assert item is not None
        assert item.params == [2]
        await agent.answer(item)
        await within(second)
    assert await orders(pool) == ()


async def test_a_pool_without_nodes_has_no_results(pool: Pool, doubles: Doubles) -> None:
    nodes_are(doubles)
    assert await pool.broadcast("x.py") == {}


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), 1e9, "1", True])
async def test_bad_timeout_is_refused(pool: Pool, timeout: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout"):
        await pool.broadcast("x.py", timeout=timeout)


READY = Heartbeat("a", "n", "h", "b", 1, "ready", 1, 0.0, 0.0, 5.0, accepts=(BROADCAST,))


@pytest.mark.parametrize(
    ("state", "beat", "refusal"),
    [
        ("running", READY, None),
        ("", READY, None),
        ("idle", None, None),
        ("running", replace(READY, state="starting", accepts=()), None),
        ("running", replace(READY, state="draining"), "about to leave"),
        ("running", replace(READY, accepts=()), "earlier version"),
        ("preempted", READY, "preempted"),
        ("rebooting", READY, "rebooting"),
    ],
)
def test_a_node_is_asked_unless_it_can_give_no_result(
    state: str, beat: Heartbeat | None, refusal: str | None
) -> None:
    standing: NodeStanding = standing_of(state, beat)
    assert (standing.refusal is None) is (refusal is None)
    assert (refusal or "") in (standing.refusal or "")
