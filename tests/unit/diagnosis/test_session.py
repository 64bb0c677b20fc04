"""Why the tasks of a session have no outcome yet."""

from __future__ import annotations

import pytest

from batchflow.diagnosis.facts import SessionFacts, WaitingTask
from batchflow.diagnosis.pool import load_cause
from batchflow.diagnosis.session import explain_session
from batchflow.model import Cause, Counts, Explanation
from batchflow.testing import MemoryStorage

BUSY = {"slots": 2, "running": 2, "queued": 4, "tasks": {}}
OTHER = Cause("node 1 is unusable", "reboot it")


@pytest.mark.parametrize("waiting", [(), (WaitingTask("u:0", "0", "x.py"),)])
async def test_the_load_of_other_sessions_keeps_no_session_that_waits_for_nothing(
    waiting: tuple[WaitingTask, ...],
) -> None:
    """Beside "0 queued, 0 running" nothing is said of slots that are busy."""
    load = load_cause(BUSY)
    assert load is not None
    pool = Explanation("pool 'p'", (OTHER, load), BUSY)
    facts = SessionFacts("j", "c", Counts(queued=len(waiting)), waiting, None, None)
    explanation = await explain_session(pool, facts, MemoryStorage().container("ctl"))
    assert explanation.causes == ((OTHER, load) if waiting else (OTHER,))
    assert f"0 being sent, {len(waiting)} queued, 0 running" in explanation.summary


@pytest.mark.parametrize(
    "change", [{"running": 1}, {"queued": 0}, {"slots": 0, "running": 0}, {"queued": None}]
)
def test_a_pool_with_a_free_slot_or_an_empty_queue_is_not_loaded(change: dict[str, int | None]) -> None:
    """Nor one of which that is not known."""
    assert load_cause({**BUSY, **change}) is None
