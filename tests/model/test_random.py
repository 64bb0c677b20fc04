"""Larger scenarios by chance: several clients, packs, retries, cancellations, drains, deadly tasks."""

from __future__ import annotations

from hypothesis import given, note, settings
from hypothesis import strategies as st

from tests.model.choices import Chance
from tests.model.scenario import play
from tests.model.scenarios import by_seed

TASKS = 40


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_by_chance_the_promise_is_kept(seed: int) -> None:
    """Many faults in a short time, by the same seeds; `python -m tests.model random` draws others."""
    outcome = play(by_seed(seed, TASKS), Chance(seed, rate=0.005, most=10))
    note(f"{outcome.checker.summary()}: {outcome.checker.told}")
    assert outcome.checker.holds


def test_a_long_run_keeps_the_promise() -> None:
    """One world with enough tasks for memories to overflow and ids to be forgotten."""
    outcome = play(by_seed(4, 3000), Chance(4, rate=0.001, most=30))
    assert outcome.checker.holds, outcome.checker.told
    assert outcome.checker.shown >= outcome.checker.accepted
