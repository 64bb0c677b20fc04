"""A short run of real processes under fire; longer ones: `make chaos`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import Plan, run, summary

SEED = 20


@pytest.mark.timeout(120)
async def test_every_task_has_one_outcome_while_processes_die(tmp_path: Path) -> None:
    """Agents, clients and connections fall while a few hundred tasks run; the checker finds no fault."""
    plan = Plan(tasks=400, faults=8, seed=SEED, batch=20, apart=0.6)
    log = await run(plan, tmp_path)
    assert log.checker.holds, summary(log)
    assert log.checker.faults.total() >= plan.faults
