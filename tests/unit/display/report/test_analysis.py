"""What a report reads out of the times of tasks."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given

from batchflow.display.report.analysis import (
    EndedTask,
    by_command,
    failure_groups,
    lanes,
    limits,
    most_at_once,
    parallelism,
    percentile,
    period,
)


def a_run(start: float, seconds: float = 1.0, *, number: int = 0, submitted: float = 0.0) -> EndedTask:
    return EndedTask(
        task_id=str(number),
        command="price.py",
        node="node1",
        status="succeeded",
        kind=None,
        error=None,
        submitted_at=submitted,
        started_at=start,
        finished_at=start + seconds,
    )


_runs = st.lists(
    st.builds(
        a_run,
        st.integers(0, 50).map(float),
        st.integers(0, 20).map(float),
        number=st.integers(0, 99),
    ),
    max_size=30,
)


@given(_runs)
def test_tasks_of_one_lane_never_overlap_and_there_are_as_many_lanes_as_tasks_at_once(
    runs: list[EndedTask],
) -> None:
    placed = [bar for bars in lanes(runs).values() for bar in bars]
    assert sorted((bar.run.started_at, bar.run.task_id) for bar in placed) == sorted(
        (run.started_at, run.task_id) for run in runs
    )
    for lane in {bar.lane for bar in placed}:
        bars = [bar.run for bar in placed if bar.lane == lane]
        assert all((before.finished_at or 0) <= (after.started_at or 0) for before, after in pairwise(bars))
    long = [run for run in runs if run.seconds]
    if long == runs and runs:
        assert 1 + max(bar.lane for bar in placed) == most_at_once(runs)


@given(_runs, st.integers(1, 40))
def test_parallelism_adds_up_to_the_seconds_that_tasks_ran(runs: list[EndedTask], bins: int) -> None:
    if (span := period(runs)) is None or span[0] == span[1]:
        return
    start, end = span
    busy = parallelism(runs, start, end, bins)
    assert sum(busy) * (end - start) / bins == pytest.approx(sum(run.seconds for run in runs))
    assert max(busy) <= most_at_once(runs) + 1e-9


@given(_runs, st.none() | st.integers(1, 8))
def test_something_is_said_of_any_tasks(runs: list[EndedTask], slots: int | None) -> None:
    assert limits(runs, slots)


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert percentile([], 0.5) is None
    assert [percentile([1.0, 2.0, 3.0, 4.0], share) for share in (0.01, 0.5, 0.51, 1.0)] == [1, 2, 3, 4]


def test_figures_of_a_command_leave_out_what_did_not_run() -> None:
    cancelled = replace(a_run(0.0), status="cancelled", started_at=None, finished_at=None, node=None)
    (figures,) = by_command([a_run(2.0, 3.0), a_run(3.0, 1.0, submitted=1.0), cancelled])
    assert (figures.tasks, figures.failed, figures.median, figures.longest) == (3, 0, 1.0, 3.0)
    assert (figures.total, figures.waited) == (4.0, 2.0)


def test_failures_that_differ_in_numbers_alone_are_one_group() -> None:
    failed = [
        replace(a_run(float(n), number=n), status="failed", kind="ValueError", error=f"no such day: {n}")
        for n in range(5)
    ]
    other = replace(a_run(9.0, number=9), status="failed", kind="KeyError", error="'x'")
    first, second = failure_groups([*failed, other, a_run(1.0)])
    assert (first.kind, first.text, first.count, first.task_ids) == (
        "ValueError", "no such day: 0", 5, ("0", "1", "2"),
    )  # fmt: skip
    assert (second.kind, second.count) == ("KeyError", 1)


@pytest.mark.parametrize(
    ("runs", "slots", "said"),
    [
        ([a_run(n / 2, 0.5) for n in range(10)], 1, "busy 100% of the time"),
        ([a_run(60.0 + n) for n in range(10)], 1, "The first task began 60 s after the first submit"),
        ([a_run(0.0, 1.0), a_run(0.0, 10.0)], 4, "fewer than half of the 4 slots were busy"),
        ([a_run(n * 0.01, 0.001) for n in range(100)], 2, "do more in each task"),
        ([a_run(n * 10.0, 1.0) for n in range(10)], 1, "submitted more slowly than they could run"),
    ],
)
def test_what_limited_a_run_is_said(runs: list[EndedTask], slots: int, said: str) -> None:
    assert said in " ".join(limits(runs, slots))
