"""Spot nodes of the local cloud that go away under a task, with a notice and without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from batchflow import Client, PoolSpec
from batchflow.local.faults import Faults
from tests.support.waiting import eventually, within

TASK = b"""
import time
from pathlib import Path

def do_action(engine, args):
    with Path(args[0]).open("a") as file:
        file.write("began\\n")
    runs = len(Path(args[0]).read_text().splitlines())
    if runs == 1:
        time.sleep(600)
    return runs
"""


async def _run_while(
    client: Client, name: str, runs: Path, go_away: Callable[[Faults], object]
) -> tuple[int, tuple[object, ...]]:
    """Run a task whose node goes away while it runs; return how often it ran, and what its history has."""
    faults = Faults(client.settings)
    spec = PoolSpec(name, nodes=0, spot=1, slots=1)
    pool = await client.ensure_pool(name, nodes=0, spec=spec, files={"task.py": TASK})
    try:
        async with pool.session() as session:
            task = await session.submit("task.py", args=[str(runs)])
            await eventually(runs.exists, pause=0.05)
            await go_away(faults)  # type: ignore[misc]
            result = await within(task.outcome(), 80.0)
            return result.value, result.attempts
    finally:
        await pool.delete()


async def test_a_notice_hands_the_task_back_before_the_node_goes(
    cloud_config: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is too long for the task to come back by itself."""
    monkeypatch.setenv("BATCHFLOW_POOL_LOCK_DURATION", "300")
    async with Client.from_config(cloud_config) as client:
        runs = await _run_while(
            client, name, tmp_path / "runs", lambda faults: faults.preempt(name, seconds=0.5, notice=9.0)
        )
    assert runs == (2, ())


async def test_without_a_notice_the_task_is_redelivered_once(
    cloud_config: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHFLOW_POOL_LOCK_DURATION", "5")
    async with Client.from_config(cloud_config) as client:
        runs = await _run_while(
            client, name, tmp_path / "runs", lambda faults: faults.preempt(name, seconds=0.5)
        )
    assert runs[0] == 2
