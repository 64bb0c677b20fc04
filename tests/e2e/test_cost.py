"""What a pool has cost, as its agents on the local cloud count it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from batchflow import Client, ConfigurationError, Pool, Session
from tests.e2e.conftest import TASKS
from tests.support.waiting import eventually


async def test_counts_the_agents_seconds_and_tasks(pool: Pool, session: Session) -> None:
    before = await pool.cost()
    await session.run("echo.py", 3)

    async def counted() -> bool:
        return (await pool.cost()).tasks > before.tasks

    await eventually(counted, pause=0.1)
    cost = await pool.cost()
    assert cost.node_seconds > before.node_seconds
    assert cost.dedicated_seconds == cost.node_seconds
    assert (cost.amount, cost.currency) == (None, None)
    assert cost.short in pool._repr_html_()


async def test_keeps_the_seconds_of_an_agent_that_is_killed(client: Client, name: str) -> None:
    pool = await client.ensure_pool(name, nodes=1, files=[TASKS])
    try:
        async with pool.session() as session:
            await session.run("echo.py", 1)

            async def counted() -> bool:
                return (await pool.cost()).tasks == 1

            await eventually(counted, pause=0.1)
            before, (beat,) = await pool.cost(), await pool.heartbeats()
            os.kill(beat.pid, signal.SIGKILL)
            await session.run("echo.py", 2)

            async def counted_again() -> bool:
                return (await pool.cost()).tasks == 2

            await eventually(counted_again, pause=0.1)
            assert (await pool.cost()).node_seconds > before.node_seconds
    finally:
        await pool.delete()


async def test_knows_the_amount_by_the_price_file(
    pool: Pool, cloud_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text('currency = "EUR"\n[sizes.standard_d2s_v3]\ndedicated = 3600.0\n')
    monkeypatch.setenv("BATCHFLOW_POOL_PRICES", str(prices))
    async with Client.from_config(cloud_config) as client:
        found = await client.pool(pool.id)
        cost = await found.cost()
        assert cost.amount == pytest.approx(cost.node_seconds)
        assert cost.currency == "EUR"
        prices.write_text('currency = "EUR"\n[sizes.standard_d2s_v3]\ndedicated = "dear"\n')
        with pytest.raises(ConfigurationError, match=r"prices\.toml: sizes\.standard_d2s_v3\.dedicated"):
            await found.cost()
