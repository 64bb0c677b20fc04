"""The scaling policy on a few traces: cost and time beside an oracle and beside Batch's formula."""

from __future__ import annotations

from typing import get_args

import pytest

from tests.simulations.elastic import ElasticPool
from tests.simulations.scaling import DEFAULT_IDLE_EXIT, better, run_policy, within
from tests.simulations.size_controls import FixedControl, FormulaControl, Removal, oracle
from tests.simulations.traces import SHAPES, make_trace

SHORT = ("bursts", "trickle", "heavy tail")
"""Shapes whose traces are short."""


@pytest.mark.parametrize("shape", SHORT)
def test_policy_is_near_an_oracle_and_better_than_the_formula(shape: str) -> None:
    """Most of a few traces; `python -m tests.simulations scaling` has the table of two hundred."""
    traces = [make_trace(shape, seed) for seed in range(3)]
    runs = [run_policy(trace, DEFAULT_IDLE_EXIT) for trace in traces]
    assert (
        sum(within(run, oracle(trace, DEFAULT_IDLE_EXIT)) for run, trace in zip(runs, traces, strict=True))
        >= 2
    )
    formulas = [ElasticPool(trace, FormulaControl(trace)).run() for trace in traces]
    assert sum(better(run, formula) for run, formula in zip(runs, formulas, strict=True)) >= 2


def test_traces_are_the_same_each_time() -> None:
    """By shape and seed; and a pool serves every task of them."""
    assert all(make_trace(shape, 3) == make_trace(shape, 3) for shape in SHAPES)
    trace = make_trace("bursts", 3)
    fixed = ElasticPool(trace, FixedControl(trace.most)).run()
    assert fixed.mean_time >= trace.mean_task
    assert fixed.cost >= trace.work / trace.slots


@pytest.mark.parametrize("removal", get_args(Removal))
def test_every_task_ends_whichever_nodes_batch_takes(removal: Removal) -> None:
    """And the pool never has more nodes than it may."""
    trace = make_trace("bursts", 6)
    run = run_policy(trace, 60.0, removal)
    assert run.mean_time >= trace.mean_task
    assert run.largest <= trace.most
