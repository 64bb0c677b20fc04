"""The record of what slots did: what is written is read, and what is no record is passed over."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchflow.protocol import activity
from batchflow.protocol.activity import ActivityBatch, SlotRun

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=activity.MOST_TEXT)
TIMES = st.floats(0, 1e10)
RUNS = st.builds(
    SlotRun,
    TEXTS,
    TEXTS,
    TEXTS,
    TEXTS,
    TEXTS,
    TIMES,
    TIMES,
    TIMES,
    st.sampled_from(activity.STATUSES),
    TEXTS,
)
NUMBERS = st.integers(0, 2**40)
BATCHES = st.builds(
    ActivityBatch, TEXTS, TEXTS, TEXTS, NUMBERS, TIMES, NUMBERS, NUMBERS, NUMBERS, st.lists(RUNS).map(tuple)
)


@given(st.lists(BATCHES, max_size=3), st.integers(0, 40))
def test_what_was_appended_is_read_from_any_line_on(batches: list[ActivityBatch], cut: int) -> None:
    """A reader that begins within a line loses that line, and no other."""
    lines = [activity.encode(each) for each in batches]
    assert list(activity.decode(b"".join(lines))) == batches
    if batches and 0 < cut < len(lines[0]):
        assert list(activity.decode(b"".join(lines)[cut:])) == batches[1:]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_an_error(data: bytes) -> None:
    """A task of the pool can write there."""
    list(activity.decode(data))


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"v": True},
        {"agent": 1},
        {"agent": "x" * 1000},
        {"ended": -1},
        {"ended": 1.5},
        {"at": "now"},
        {"runs": None},
        {"runs": [["too", "short"]]},
    ],
)
def test_a_line_with_a_wrong_field_is_passed_over(change: dict[str, object]) -> None:
    """The line after it is read."""
    right = {"v": 1, "agent": "a", "node": "n", "host": "h", "number": 0, "at": 1.0}
    right |= {"ended": 0, "failed": 0, "cancelled": 0, "runs": []}
    lines = b"\n".join([orjson.dumps(right | change), orjson.dumps(right), b""])
    assert [each.number for each in activity.decode(lines)] == [0]


def test_a_wrong_run_is_left_out_and_counts_as_dropped() -> None:
    """Those beside it are read."""
    good = SlotRun("u:1", "1", "x.py", "job", "client", 1.0, 2.0, 3.0, "succeeded")
    bad = [good._replace(status="<b>"), good._replace(started_at=1e200), good._replace(error="x" * 999)]
    (read,) = activity.decode(activity.encode(ActivityBatch("a", "n", "h", 0, 4.0, 4, 0, 0, [*bad, good])))
    assert list(read.runs) == [good]
    assert read.dropped == 3


def test_the_ring_holds_the_retention_and_comes_round() -> None:
    """A blob is written again only when what it held is older than the retention."""
    names = [activity.segment_blob("a", at * activity.SEGMENT) for at in range(activity.SEGMENTS + 1)]
    assert len(set(names)) == activity.SEGMENTS
    assert names[0] == names[-1]
    assert (activity.SEGMENTS - 1) * activity.SEGMENT >= activity.RETENTION
