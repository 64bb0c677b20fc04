"""The formula of elastic pools, as the local Batch service evaluates it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from batchflow.local.batch.core.autoscale import Targets, evaluate
from batchflow.local.batch.core.formula import MAX_LENGTH
from batchflow.local.batch.core.formula_values import FormulaFacts
from batchflow.local.batch.core.samples import METRICS, MetricSample
from batchflow.pools.scaling.formula import (
    WORKING,
    FormulaDates,
    FormulaWish,
    dates_of,
    is_ours,
    scaling_formula,
)
from batchflow.protocol.documents import ScalingLimits

NOW = datetime(2026, 11, 30, tzinfo=UTC).timestamp()
SAMPLES = (18,) * 9
LIMITS = ScalingLimits(min_nodes=1, max_nodes=40, max_spot=20)


def size(
    limits: ScalingLimits,
    wish: FormulaWish,
    *pending: int,
    there: tuple[int, int] = (0, 0),
    late: float = 0.0,
    running: int = 0,
) -> tuple[int | None, int | None]:
    """The size that the formula gives. `pending`: samples of every half minute, the newest last, which is as
    old as samples are and `late` seconds more."""
    samples = [
        MetricSample(
            NOW - 60.0 - late - 30.0 * (len(pending) - 1 - place),
            tuple(
                {"$PendingTasks": float(count), "$RunningTasks": float(running)}.get(name, 0.0)
                for name in METRICS
            ),
        )
        for place, count in enumerate(pending)
    ]
    facts = FormulaFacts(NOW, *there, [0.0] * len(METRICS), samples)
    targets: Targets = evaluate(scaling_formula(limits, wish), facts)
    assert targets.option == "taskcompletion"
    return targets.dedicated, targets.spot


def test_wish_counts_at_once_although_no_sample_shows_the_new_agents() -> None:
    """A formula that has just been set does not see agent tasks that were just added."""
    wish = FormulaWish(12, 6, until=NOW + 60, counted_until=NOW + 600)
    assert size(LIMITS, wish) == (12, 6)
    assert size(LIMITS, wish, *[0] * 10) == (12, 6)


def test_agents_are_counted_after_the_wish() -> None:
    """Dedicated nodes are kept first."""
    wish = FormulaWish(12, 6, until=NOW - 1, counted_until=NOW + 600)
    assert size(LIMITS, wish, *SAMPLES, 18) == (12, 6)
    assert size(LIMITS, wish, *SAMPLES, 15) == (12, 3)
    assert size(LIMITS, wish, *SAMPLES, 5) == (5, 0)
    assert size(LIMITS, wish, *SAMPLES, 0) == (1, 0)


def test_size_stays_while_samples_are_missing() -> None:
    """With too few of the last five minutes, the formula does not guess."""
    wish = FormulaWish(12, 6, until=NOW - 1, counted_until=NOW + 600)
    assert size(LIMITS, wish, there=(9, 4)) == (12, 1)
    assert size(LIMITS, wish, *[1] * 10, there=(9, 0), late=90.0) == (9, 0)


def test_pool_has_its_minimum_when_no_client_has_renewed_the_date() -> None:
    """Agent tasks that can never run hold no nodes then."""
    wish = FormulaWish(12, 6, until=NOW - 700, counted_until=NOW)
    assert size(LIMITS, wish, *SAMPLES, 18, there=(12, 6)) == (1, 0)
    assert size(ScalingLimits(max_nodes=5), wish, *SAMPLES, 18) == (0, 0)


def test_agents_that_run_are_counted_when_no_client_lives() -> None:
    """They end their tasks, and those that are queued; each takes a node with it."""
    wish = FormulaWish(12, 6, until=NOW - 700, counted_until=NOW)
    assert size(LIMITS, wish, *SAMPLES, 18, there=(12, 6), running=15) == (12, 3)
    assert size(LIMITS, wish, *SAMPLES, 18, there=(12, 6), running=4) == (4, 0)
    assert size(LIMITS, wish, there=(12, 6), running=4) == (1, 0)


def test_agents_that_fail_without_end_hold_no_nodes_without_end() -> None:
    """After a day the pool has its minimum; nodes with an agent that works wait for it."""
    wish = FormulaWish(12, 6, until=NOW - 700, counted_until=NOW - WORKING)
    assert size(LIMITS, wish, *SAMPLES, 18, there=(12, 6), running=15) == (1, 0)


def test_dates_are_read_from_the_text() -> None:
    """Those that clients renew: earlier versions know these two as well."""
    text = scaling_formula(LIMITS, FormulaWish(1, 0, NOW + 60, NOW + 600))
    assert dates_of(text) == FormulaDates(NOW + 60, NOW + 600)


def test_limits_bound_every_stage() -> None:
    """A wish above the limits, and more agents than nodes may be."""
    over = FormulaWish(100, 100, until=NOW + 60, counted_until=NOW + 60)
    assert size(LIMITS, over) == (40, 20)
    counted = FormulaWish(100, 100, until=NOW - 60, counted_until=NOW + 60)
    assert size(LIMITS, counted, *[300] * 10) == (40, 20)
    assert size(ScalingLimits(2, 9), FormulaWish(0, 0, NOW + 60, NOW + 60)) == (2, 0)


def test_pool_without_spot_counts_every_agent_as_dedicated() -> None:
    """Also agents that were added after the last wish."""
    wish = FormulaWish(3, 0, until=NOW - 1, counted_until=NOW + 600)
    assert size(ScalingLimits(max_nodes=9), wish, *[7] * 10) == (7, 0)


@pytest.mark.parametrize(
    "formula", [None, "", "$TargetDedicatedNodes = 3;", "// by hand\n$TargetDedicatedNodes=1;"]
)
def test_formula_of_another_program_is_known_for_it(formula: str | None) -> None:
    """It is left alone."""
    assert not is_ours(formula)


def test_own_formula_is_known_and_short() -> None:
    """Batch may answer with other line ends."""
    text = scaling_formula(ScalingLimits(1000, 10_000, 1000, 10_000), FormulaWish(10_000, 10_000, NOW, NOW))
    assert is_ours("\r\n" + text.replace("\n", "\r\n"))
    assert len(text) < MAX_LENGTH / 4
