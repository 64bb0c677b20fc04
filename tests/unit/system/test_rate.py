"""How often something may happen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node_agent.system.rate import Rate


@given(st.lists(st.floats(0, 0.5), max_size=300))
def test_a_rate_lets_no_more_through_than_it_says(gaps: list[float]) -> None:
    """At most the burst and what grew since; the others are counted."""
    rate = Rate(per_second=10.0, burst=5)
    now = 0.0
    passed = 0
    for gap in gaps:
        now += gap
        passed += rate.allows(now)
        assert passed <= 5 + now * 10 + 1e-6
    assert passed + rate.dropped == len(gaps)
