"""Results as a list, and as a DataFrame."""

from __future__ import annotations

import subprocess
import sys

import pytest

from batchflow import Status, TaskError
from batchflow.results import Results
from tests.support.results import a_result

FAILED = a_result(1, status=Status.FAILED, error="ValueError: no", kind="TaskFailed")


def test_values_and_failures() -> None:
    """`values` are those of a list without failures; `failed` are the others."""
    results = Results([a_result(0, value=4), FAILED])
    assert results.failed == [FAILED]
    assert Results(results[:1]).values == [4]
    with pytest.raises(TaskError, match="ValueError: no"):
        _ = results.values


def test_a_frame_has_a_row_for_each_result() -> None:
    """By index, with times in UTC and how long each took."""
    pandas = pytest.importorskip("pandas")
    results = Results([a_result(7, value=49, started_at=10.0, finished_at=10.5, tag={"a": 1}), FAILED])
    frame = results.to_pandas()
    assert list(frame.index) == [7, 1]
    assert frame.loc[7, "value"] == 49
    assert frame.loc[7, "seconds"] == 0.5
    assert frame.loc[7, "started_at"] == pandas.Timestamp(10, unit="s", tz="UTC")
    assert frame.loc[1, "status"] == "failed"
    assert frame.loc[1, "kind"] == "TaskFailed"
    assert pandas.isna(frame.loc[1, "finished_at"])
    assert str(frame["submitted_at"].dtype).endswith("UTC]")


def test_dicts_can_become_columns() -> None:
    """With `expand` each key of the values is a column, whatever the other results have."""
    pandas = pytest.importorskip("pandas")
    results = Results(
        [a_result(0, value={"x": 1, "y": "a"}), a_result(0, value={"x": 2}), a_result(2, value=[3])]
    )
    frame = results.to_pandas(expand=True)
    assert list(frame["value.x"])[:2] == [1, 2]
    assert frame["value.y"].iloc[0] == "a"
    assert pandas.isna(frame["value.y"].iloc[1])
    assert frame["value"].iloc[2] == [3]
    assert len(frame) == 3


def test_a_frame_shows_what_was_asked() -> None:
    """As a list, or with `expand` and a lone argument that is a dict by its keys."""
    pytest.importorskip("pandas")
    results = Results([a_result(0, value=4, args=[2]), a_result(1, value=9, args=[{"n": 3}])])
    assert list(results.to_pandas()["args"]) == [[2], [{"n": 3}]]
    frame = results.to_pandas(expand=True)
    assert frame["args"].iloc[0] == [2]
    assert frame["args.n"].iloc[1] == 3


def test_no_results_are_an_empty_frame() -> None:
    """The columns are there, with their types."""
    pytest.importorskip("pandas")
    frame = Results().to_pandas(expand=True)
    assert len(frame) == 0
    assert "seconds" in frame.columns


def test_without_pandas_it_says_what_to_install() -> None:
    """Where pandas is not installed a frame cannot be had, and the error says how it can."""
    program = (
        "import sys; sys.modules['pandas'] = None\n"
        "from batchflow.errors import ConfigurationError\n"
        "from batchflow.results import Results\n"
        "try: Results().to_pandas()\n"
        "except ConfigurationError as error: print(error)\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout == "pandas is not installed: pip install pandas\n"


def test_plain_representation_has_at_most_ten_lines() -> None:
    """A summary, then inputs beside values with five significant digits, and how many are left."""
    results = Results(
        a_result(
            number,
            value=number / 3,
            args=[number],
            node="n",
            started_at=10.0,
            finished_at=10.0 + number / 1000,
        )
        for number in range(2_000)
    )
    lines = repr(results).splitlines()
    assert len(lines) == 10
    assert lines[0] == "<Results: 2,000 results, 0 failed, p50 1 s, p99 1.98 s, 1 node>"
    assert lines[3] == "  2: 2 -> 0.66667"
    assert lines[-1] == "  and 1,992 more"
    assert repr(results[2]) == "<Result '2' 'x.py' succeeded, 0.66667, 2 ms on n>"
    view = results._repr_html_()
    assert "2,000 results, 0 failed" in view
    assert "and 1,950 more" in view
    assert len(view) < 40_000
