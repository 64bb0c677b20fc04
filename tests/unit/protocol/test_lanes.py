"""Lanes: what a pool has, and which one a session takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchflow.errors import ConfigurationError
from batchflow.protocol import lanes


@given(st.lists(st.tuples(st.sampled_from(lanes.PRIORITIES), st.text(max_size=8)), max_size=40))
def test_sessions_spread_over_the_lanes_of_their_priority(sessions: list[tuple[lanes.Priority, str]]) -> None:
    """No lane has two more than another one of the same priority."""
    layout = lanes.layout()
    used = dict.fromkeys(range(len(layout)), 0)
    for priority, name in sessions:
        lane = lanes.lane_for(layout, priority, name, used)
        assert layout[lane] == priority
        used[lane] += 1
    for priority in lanes.PRIORITIES:
        counts = [used[lane] for lane, each in enumerate(layout) if each == priority]
        assert max(counts) - min(counts) <= 1


def test_a_priority_that_is_none_is_refused() -> None:
    assert lanes.check_priority(None) == "normal"
    with pytest.raises(ConfigurationError, match="priority is 'urgent'"):
        lanes.check_priority("urgent")


def test_a_lane_of_a_later_version_counts_as_normal() -> None:
    """An agent does not refuse a pool for it."""
    assert lanes.weight("express") == lanes.weight("normal")
    assert lanes.rank("express") == lanes.rank("normal")
