"""Budgets on real agents: what runs ends, nothing new begins, the agents leave, the pool shrinks."""

from __future__ import annotations

import pytest

from batchflow import Budget, Client, ConfigurationError, PoolSpec
from batchflow.errors import BudgetExceeded, PoolError
from tests.support.waiting import eventually

BUDGET = Budget(node_hours=12 / 3600)
"""An agent on a busy machine needs some of the seconds for its start."""
SLEEPS = b"import time\ndef do_action(engine, args):\n    time.sleep(args[0])\n    return args[0]\n"


async def test_a_pools_budget_ends_its_tasks_and_shrinks_it(client: Client, name: str) -> None:
    spec = PoolSpec(name, nodes=1, slots=1, budget=BUDGET)
    pool = await client.ensure_pool(name, spec=spec, files={"sleeps.py": SLEEPS})
    try:
        async with pool.session() as session:
            tasks = await session.submit_many("sleeps.py", [1.5] * 12)
            outcomes = [await task.outcome() for task in tasks]
            kinds = {outcome.kind for outcome in outcomes if not outcome.ok}
            assert kinds == {"BudgetExceeded"}
            assert outcomes[0].ok
            assert 1 <= sum(outcome.ok for outcome in outcomes) <= 8
            with pytest.raises(BudgetExceeded, match=r"the pool's budget of .* is spent"):
                await tasks[-1]

            async def no_agents() -> bool:
                return not await pool.heartbeats()

            await eventually(no_agents, pause=0.2)
            cost = await pool.cost()
            assert cost.is_spent
            assert cost.budget == BUDGET
            assert cost.node_seconds < 30
            late = await session.submit("sleeps.py", args=[0])
            assert (await late.outcome()).kind == "BudgetExceeded"

            async def shrunk() -> bool:
                return not await pool.nodes()

            await eventually(shrunk, pause=0.2)
            with pytest.raises(PoolError, match="budget"):
                await pool.start()
            assert "the pool's budget of" in str(await pool.explain())
    finally:
        await pool.delete()


async def test_a_sessions_budget_ends_its_own_tasks_alone(client: Client, name: str) -> None:
    pool = await client.ensure_pool(name, nodes=1, files={"sleeps.py": SLEEPS})
    try:
        async with pool.session(budget=Budget(node_hours=1 / 3600)) as poor, pool.session() as rich:
            tasks = await poor.submit_many("sleeps.py", [0.6] * 6)
            outcomes = [await task.outcome() for task in tasks]
            assert outcomes[0].ok
            assert {each.kind for each in outcomes if not each.ok} == {"BudgetExceeded"}
            assert await rich.run("sleeps.py", args=[0]) == 0
    finally:
        await pool.delete()


async def test_an_amount_without_a_price_is_refused_before_anything_is_made(
    client: Client, name: str
) -> None:
    spec = PoolSpec(name, nodes=1, budget=Budget(amount=1, currency="EUR"))
    with pytest.raises(ConfigurationError, match=r"budget\.amount.*pool\.prices"):
        await client.create_pool(spec)
    assert name not in [pool.id async for pool in client.pools()]
