"""Tasks that require something of their nodes, from their session's side."""

from __future__ import annotations

from typing import Any

import pytest

from batchflow.errors import ConfigurationError, TaskRejected
from batchflow.pool import Pool
from batchflow.protocol.needs import NEEDS
from batchflow.task import Task
from tests.support.agent import Agent
from tests.support.services import Doubles
from tests.support.waiting import within

KIND: dict[str, Any] = {"accepts": (NEEDS,), "memory": 1000, "gpus": 0, "tags": ("ssd",)}


async def rejection(task: Task[Any]) -> str:
    with pytest.raises(TaskRejected) as error:
        await within(task)
    return str(error.value)


@pytest.mark.parametrize(
    "requires", [{"slots": 3}, {"memory": 1001}, {"gpus": 1}, {"gpus": 1, "tags": ["ssd"]}]
)
async def test_what_no_node_of_the_pools_size_can_run_is_rejected(
    pool: Pool, agent: Agent, requires: dict[str, Any]
) -> None:
    """One agent tells the size of all nodes: the first task is rejected at the first look, others at once."""
    await agent.beat(**KIND)
    async with pool.session() as session:
        assert "requires" in await rejection(await session.submit("x.py", requires=requires))
        task = await session.submit("x.py", requires=requires)
        assert task.done
        assert await rejection(task)
        after = await session.submit("x.py", after=[task], on_failure="pass", requires=requires)
        assert await rejection(after)


async def test_tags_are_known_when_each_node_has_an_agent(pool: Pool, doubles: Doubles, agent: Agent) -> None:
    """Until then `explain` alone tells, because a node that comes may have the tag."""
    await agent.beat(**KIND)
    other = Agent(doubles, pool, "agent-2")
    async with pool.session() as session:
        task = await session.submit("x.py", requires={"tags": ["fast"]})
        told = await session.explain()
        assert any("1 tasks require the tag 'fast', it has ssd" in cause.what for cause in told.causes)
        assert not task.done
        await other.beat(**KIND, node="node-2")
        assert "'fast'" in await rejection(task)


async def test_what_fits_is_sent_with_what_it_requires(pool: Pool, agent: Agent) -> None:
    await agent.beat(**KIND)
    async with pool.session() as session:
        task = await session.submit("x.py", requires={"slots": "all", "tags": ("ssd",)})
        (item,) = await agent.take()
        assert item.requires == {"slots": "all", "tags": ["ssd"]}
        told = await session.explain()
        assert any("wait until a node has all its slots free" in cause.what for cause in told.causes)
        await agent.answer(item, value="done")
        assert await within(task) == "done"
        assert not any("wait until" in cause.what for cause in (await session.explain()).causes)


async def test_agents_of_earlier_versions_run_what_is_required(pool: Pool, agent: Agent) -> None:
    """They do not tell what their nodes have."""
    await agent.beat()
    async with pool.session() as session:
        task = await session.submit("x.py", requires={"gpus": 1})
        (item,) = await agent.take()
        await agent.answer(item, value=1)
        assert await within(task) == 1


@pytest.mark.parametrize("requires", [{"cores": 1}, {"slots": 0}, {"tags": "ssd"}, "all", {"memory": "8 GB"}])
async def test_what_cannot_be_required_is_refused(pool: Pool, requires: Any) -> None:
    async with pool.session() as session:
        with pytest.raises(ConfigurationError, match="requires"):
            await session.submit("x.py", requires=requires)
        with pytest.raises(ConfigurationError, match="requires"):
            session.map("x.py", [1], requires=requires)
