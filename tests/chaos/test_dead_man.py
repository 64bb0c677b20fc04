"""A short form of the dead-man's switch; longer ones: `python -m tests.chaos.dead_man`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.dead_man import dead_man

SEED = 9


@pytest.mark.timeout(120)
async def test_no_node_stays_and_no_task_is_lost_when_clients_and_agents_are_killed(tmp_path: Path) -> None:
    """The agents that are left, or that Batch starts again, finish what is queued, and leave."""
    (played,) = await dead_man(1, SEED, tmp_path)
    assert played.holds, str(played)
    assert played.agents_killed
