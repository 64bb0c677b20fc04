"""What is expected of a command after some of its tasks have been seen."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from batchflow.protocol.durations import LEAST_DURATION, Durations


@given(st.lists(st.floats(0.04, 0.06), min_size=40, max_size=80))
def test_load_makes_a_command_seem_little_longer(seen: list[float]) -> None:
    """It stays near the quick ones; and what takes longer for good is known for it after some."""
    learning = Durations()
    for each in seen:
        learning.seen("x", each)
    assert min(seen) <= learning.expected("x") * (1 + 1e-9) <= max(seen) * (1 + 2e-9)
    alternating = Durations()
    for number in range(40):
        alternating.seen("x", 0.04 + 0.02 * (number % 2))
    assert 0.045 < alternating.expected("x") < 0.049
    for _ in range(20):
        alternating.seen("x", 1.0)
    assert alternating.expected("x") > 0.5


def test_nothing_is_expected_of_an_unknown_command() -> None:
    """And what takes no time, by a clock that stepped back, takes a little all the same."""
    learning = Durations()
    assert learning.expected("x") == math.inf
    learning.seen("x", -5.0)
    assert learning.expected("x") == LEAST_DURATION
