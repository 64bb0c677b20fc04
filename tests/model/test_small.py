"""Every order of the small scenarios, up to stated bounds."""

from __future__ import annotations

import pytest

from tests.model.choices import Choices, Scripted, explore
from tests.model.scenario import Outcome, Scenario, play
from tests.model.scenarios import SLOW, SMALL

QUICK = [name for name in SMALL if name not in SLOW]
BOUNDS = [(name, 1, 0) for name in QUICK] + [("two messages", 0, 1), ("one pack", 0, 1)]
"""Faults in a run, and departures from the default order; larger ones: `python -m tests.model small`."""


def broken(scenario: Scenario, faults: int, departures: int) -> tuple[int, list[str]]:
    """How many orders there are, and what was told of those that broke the promise."""
    told: list[str] = []

    def run(choices: Scripted) -> None:
        outcome = play(scenario, choices)
        if not outcome.checker.holds:
            told.append(f"{outcome.checker.told} by {[answer for answer, _ in choices.asked]}")

    return sum(1 for _ in explore(run, faults=faults, departures=departures)), told


@pytest.mark.parametrize(("name", "faults", "departures"), BOUNDS)
def test_every_order_keeps_the_promise(name: str, faults: int, departures: int) -> None:
    """Whatever fails at whatever step: one outcome each, none twice, nothing left."""
    orders, told = broken(SMALL[name], faults, departures)
    assert not told
    assert orders > 30


@pytest.mark.parametrize("name", SMALL)
def test_without_faults_nothing_is_left(name: str) -> None:
    """No payload either, and no document but that of a session that is still open."""
    outcome = play(SMALL[name], Scripted([], faults=0, departures=0))
    assert outcome.checker.holds, outcome.checker.told
    assert {blob.partition("/")[0] for blob in outcome.blobs} <= {"sessions", "cancel"}


def test_the_same_decisions_give_the_same_history() -> None:
    """A run is its decisions: what a walk finds can be repeated."""

    def run() -> Outcome:
        choices: Choices = Scripted([0] * 60 + [1], faults=1, departures=0)
        return play(SMALL["two messages"], choices, keep=True)

    assert run().records == run().records
