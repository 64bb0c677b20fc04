"""What the page knows of the last quarter of an hour: bounded, each task once, whoever tells it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchflow.dashboard import timeline as module
from batchflow.dashboard.timeline import STEP, Timeline, kind_of
from batchflow.protocol.activity import RETENTION, ActivityBatch, SlotRun

NOW = 10_000.0


def run(number: int, *, finished: float = NOW - 7, status: str = "succeeded", error: str = "") -> SlotRun:
    return SlotRun(
        f"u:{number}",
        str(number),
        "x.py",
        "job",
        "alice",
        finished - 3,
        finished - 2,
        finished,
        status,
        error,
    )


def batch(number: int, *runs: SlotRun, ended: int | None = None, failed: int | None = None) -> ActivityBatch:
    bad = sum(each.status == "failed" for each in runs) if failed is None else failed
    return ActivityBatch(
        "a", "n", "host", number, NOW - 6, len(runs) if ended is None else ended, bad, 0, runs
    )


def test_a_batch_that_comes_twice_counts_once() -> None:
    """An append whose answer got lost is made again."""
    line = Timeline()
    for _ in range(2):
        line.add_batch(batch(0, run(1), run(2), ended=5), NOW)
    assert (len(line.runs), line.dropped) == (2, 3)
    assert sum(line.series(NOW)["rate"]) * STEP == pytest.approx(5)


def test_a_task_that_session_and_agent_tell_is_shown_once() -> None:
    """The session tells it at once, the agent with its next heartbeat."""
    line = Timeline()
    line.add_runs([("host", run(1))], NOW)
    line.add_batch(batch(0, run(1)), NOW)
    assert [row[0] for row in line.runs] == ["u:1"]


@given(st.lists(st.tuples(st.floats(0, 2e4), st.integers(0, 50), st.sampled_from(["succeeded", "failed"]))))
def test_any_times_leave_it_bounded(told: list[tuple[float, int, str]]) -> None:
    """Clocks of nodes are wrong, and code on a node may write what it likes."""
    line = Timeline()
    for number, (at, uid, status) in enumerate(told):
        line.add_batch(batch(number, run(uid, finished=at, status=status, error=f"no {uid}")), NOW)
    series = line.series(NOW)
    assert {len(series[key]) for key in ("rate", "failed", "p50", "p99")} == {round(RETENTION / STEP) - 1}
    assert all(row[7] >= NOW - RETENTION and row[7] <= NOW + 60 for row in line.runs)
    assert len({row[0] for row in line.runs}) == len(line.runs)
    assert sum(group["count"] for group in line.failures(NOW)) <= len(told)


def test_the_oldest_runs_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a reader that asks for what is forgotten gets what is left."""
    monkeypatch.setattr(module, "MOST_RUNS", 3)
    line = Timeline()
    line.runs = type(line.runs)(maxlen=3)
    line.add_runs([("h", run(number)) for number in range(5)], NOW)
    assert [row[0] for row in line.since(0)] == ["u:2", "u:3", "u:4"]
    assert [row[0] for row in line.since(4)] == ["u:4"]
    assert line.since(5) == []


def test_runs_are_shown_before_they_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more than are remembered only the failures of the older ones are shown; all are counted."""
    monkeypatch.setattr(module, "MOST_RUNS", 3)
    line = Timeline()
    told = [batch(0, run(0), run(1, status="failed", error="no"))]
    told += [batch(number, run(number)) for number in range(2, 5)]
    fresh = line.unknown([*told, told[0]])
    assert fresh == told
    assert sum(1 for _ in line.show(fresh, NOW)) == 4
    assert [row[0] for row in line.runs] == ["u:2", "u:3", "u:4"]
    assert [group["count"] for group in line.failures(NOW)] == [1]
    assert sum(line.series(NOW)["rate"]) == 0
    assert sum(1 for _ in line.count(fresh, NOW)) == 4
    assert sum(line.series(NOW)["rate"]) * STEP == 5


def test_failures_that_say_the_same_are_one_group() -> None:
    """Numbers and quoted names differ from task to task."""
    line = Timeline()
    errors = ["row 17 of 'a.csv' is bad", "row 9 of 'b.csv' is bad", "no memory"]
    runs = [run(number, status="failed", error=error) for number, error in enumerate(errors)]
    line.add_batch(batch(0, *runs), NOW)
    first, second = line.failures(NOW)
    assert (first["count"], first["text"], first["examples"][0]) == (
        2,
        "row 9 of 'b.csv' is bad",
        ("u:1", "1"),
    )
    assert (second["count"], second["text"]) == (1, "no memory")


def test_failures_count_for_a_quarter_of_an_hour() -> None:
    """As runs and rates do; a kind of which none is left is not told."""
    line = Timeline()
    line.add_batch(batch(0, run(1, status="failed", error="no")), NOW)
    later = NOW + RETENTION / 2
    line.add_batch(batch(1, run(2, finished=later, status="failed", error="no")), later)
    assert [group["count"] for group in line.failures(later)] == [2]
    assert [group["count"] for group in line.failures(NOW + RETENTION)] == [1]
    assert line.failures(later + 2 * RETENTION) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [("at 0x7f3a21", "at 0x11bb99"), ('key "a"', 'key "bcd"'), ("", "   "), ("took 1.5 s", "took 22.75 s")],
)
def test_what_differs_in_numbers_and_names_is_of_one_kind(one: str, other: str) -> None:
    """So that a thousand failures are a line."""
    assert kind_of(one) == kind_of(other)


def test_latency_is_that_from_submit_to_end() -> None:
    """Of the last minute."""
    line = Timeline()
    line.add_batch(batch(0, run(1)), NOW)
    assert line.latency(NOW, 0.5) == 3.0
    assert line.latency(NOW + 300, 0.5) is None
    assert line.rate(NOW) == pytest.approx(1 / 30)
