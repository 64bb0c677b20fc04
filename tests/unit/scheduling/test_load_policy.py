"""How long results wait for others, by what there is to do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batchflow.protocol.packing import MOST_WORK
from node_agent.scheduling.load_policy import HOLD, LOADED_HOLD, hold


@given(st.floats(0.0, 10.0))
def test_results_wait_longer_only_behind_much_work(left: float) -> None:
    """No longer than the slot is busy anyway; the results of a whole pack in a message or two then."""
    assert hold(left) in (HOLD, 0.03, 0.06, LOADED_HOLD)
    assert hold(left) <= max(HOLD, left)
    assert hold(0.02) == HOLD
    assert hold(1.0) == LOADED_HOLD > MOST_WORK / 2
