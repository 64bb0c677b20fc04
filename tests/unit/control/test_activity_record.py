"""What an agent keeps of its tasks until it is written: bounded, and nothing is dropped uncounted."""

from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from batchflow.model import Status
from batchflow.protocol.activity import MOST_TEXT
from node_agent.control.activity_record import BYTES_A_SECOND, ActivityRecord
from tests.support.agent_world import task

STATUSES = st.sampled_from([Status.SUCCEEDED, Status.FAILED, Status.CANCELLED])
ENDS = st.tuples(STATUSES, st.one_of(st.none(), st.text(max_size=400)), st.text(max_size=300))


@given(st.lists(st.one_of(ENDS, st.none()), max_size=60), st.integers(1, 80))
def test_counts_add_up_and_bytes_stay_below_the_bound(
    steps: list[tuple[Status, str | None, str] | None], times: int
) -> None:
    """None: the record is taken. What was taken and could not be written is counted the next time."""
    record, noted, counted = ActivityRecord(1.0), dict.fromkeys(Status, 0), dict.fromkeys(Status, 0)
    for number, step in enumerate([*steps, None]):
        if step is None:
            counts, runs = record.take()
            assert not record
            assert len(runs) <= sum(counts.values())
            assert len(orjson.dumps(runs, default=tuple)) <= BYTES_A_SECOND + 2
            assert all(len(text) <= MOST_TEXT + 1 for run in runs for text in (run.error, run.task_id))
            assert not any("\n" in run.error for run in runs)
            if number % 2 and number < len(steps):
                record.give_back(counts)
            else:
                for status, ended in counts.items():
                    counted[status] += ended
            continue
        status, error, label = step
        for _ in range(times):
            noted[status] += 1
            record.ended(task(1, task_id=label), status, error, None, 5.0)
    assert counted == noted


def test_failures_have_room_when_successes_flood() -> None:
    """They are what a person looks for."""
    record = ActivityRecord(1.0)
    for _ in range(5_000):
        record.ended(task(1), Status.SUCCEEDED, None, 1.0, 2.0)
    for number in range(5):
        record.ended(task(number), Status.FAILED, "ValueError: no\nmore", 1.0, 2.0)
    counts, runs = record.take()
    assert counts[Status.SUCCEEDED] == 5_000
    assert [run.error for run in runs if run.status == "failed"] == ["ValueError: no"] * 5


def test_a_lone_surrogate_does_not_spoil_the_record() -> None:
    """A label is any string of Python, and JSON takes no half of a pair."""
    record = ActivityRecord(1.0)
    record.ended(task(1, task_id="a\ud800"), Status.SUCCEEDED, None, 1.0, 2.0)
    assert [run.task_id for run in record.take()[1]] == ["a?"]
