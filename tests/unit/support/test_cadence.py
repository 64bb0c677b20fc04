"""Periodic work comes together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batchflow.support.cadence import next_turn

times = st.floats(0.0, 1e6)
shifts = st.floats(0.0, 60.0)


@given(st.floats(0.1, 600.0), times, shifts)
def test_turn_is_half_to_one_and_a_half_intervals_away(interval: float, now: float, shift: float) -> None:
    away = next_turn(interval, now, shift) - now
    assert 0.49 * interval <= away <= 1.51 * interval


@given(st.integers(1, 60), times, shifts)
def test_turns_follow_each_other_at_the_interval(interval: int, now: float, shift: float) -> None:
    """Also when the timer fires a little early or late."""
    turn = next_turn(interval, now, shift)
    for error in (-0.002, 0.0, 0.2):
        assert abs(next_turn(interval, turn + error * interval, shift) - turn - interval) < 1e-4


@given(times, times, shifts)
def test_turns_of_multiples_coincide(one: float, other: float, shift: float) -> None:
    turn = next_turn(30.0, one, shift)
    again = next_turn(5.0, other, shift)
    apart = abs(turn - again) % 5.0
    assert min(apart, 5.0 - apart) < 1e-4
