"""The figures that views of pools show: asked at once, and there while they are asked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from batchflow.client import Client
from batchflow.diagnosis.figures import look, look_at_all
from batchflow.errors import PoolError
from batchflow.pool import Pool
from batchflow.pools.reports.figures import PoolFigures
from tests.support.agent import Agent
from tests.support.services import Doubles
from tests.support.waiting import eventually


async def test_what_a_client_may_not_ask_is_left_out(
    doubles: Doubles, pool: Pool, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is there."""

    async def refused(*_: Any) -> Any:
        raise PoolError("no rights")

    monkeypatch.setattr(doubles.compute, "nodes", refused)
    seen = await look(pool.runtime, refused)
    assert (seen.nodes, seen.queued, seen.dead, seen.cost) == (None, None, None, None)
    assert seen.agents == "1 ready"


async def test_all_pools_are_asked_at_once_and_shown_meanwhile(
    client: Client, doubles: Doubles, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool that is gone is forgotten."""
    second = await client.ensure_pool("second", files={"x.py": b"def do_action(engine, args): ..."})
    asked: list[str] = []
    answering = asyncio.Event()

    async def late(pool_id: str) -> Any:
        asked.append(pool_id)
        await answering.wait()
        return []

    monkeypatch.setattr(doubles.compute, "nodes", late)
    old = PoolFigures("9 idle", "none", 0, 0, None, None, None)
    figures = pool.runtime.sessions.figures
    figures |= {pool.id: old, "gone": old}
    looking = asyncio.create_task(
        look_at_all(figures, [(each.runtime, each.cost) for each in (pool, second)])
    )
    await eventually(lambda: len(asked) == 2)
    assert figures == {pool.id: old}
    answering.set()
    await looking
    assert {name: seen.nodes for name, seen in figures.items()} == {pool.id: "none", "second": "none"}
