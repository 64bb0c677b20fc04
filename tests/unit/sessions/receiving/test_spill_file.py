"""Outcomes on disk read as what they were, for as long as somebody may ask."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from batchflow.model import Attempt, Status
from batchflow.protocol.wire import ResultItem
from batchflow.sessions.receiving.spill_file import SpillFile

FAILED = ResultItem(
    uid="inc:1", client="c", job="j", task_id="1", command="x.py", status=Status.FAILED, host="host",
    value=None, error="broke", kind="TaskFailed", traceback="Traceback ...", tag={"tag": 1}, attempt=2,
    history=(Attempt(1, "e", "n", 1.0),), stdout="out", stderr="err", submitted_at=1.0, started_at=2.0,
    finished_at=3.0, files=("a.txt",),
)  # fmt: skip


def result(number: int, size: int = 10) -> ResultItem:
    value = {"text": "x" * size, "n": number}
    return ResultItem(
        uid=f"inc:{number}", client="c", job="j", task_id=str(number), command="x.py",
        status=Status.SUCCEEDED, host="host", value=value, error=None,
    )  # fmt: skip


def test_outcomes_come_back_in_any_order() -> None:
    """Each whole, whatever was written or read between."""
    file = SpillFile()
    items = [result(number, size=number * 37 % 500) for number in range(50)] + [FAILED]
    spilled = []
    for item in items:
        spilled.append(file.write(item))
        assert spilled[len(spilled) // 2].read() == items[len(spilled) // 2]
    for item, place in reversed(list(zip(items, spilled, strict=True))):
        assert place.read() == item
        assert place.read() == item


def test_spilled_outcome_outlives_its_session() -> None:
    """A task that somebody still holds keeps its outcome, though its session is gone."""
    spilled = SpillFile().write(FAILED)
    gc.collect()
    assert spilled.read() == FAILED


def test_spill_file_ends_with_its_last_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No name on the disk at any time, and no descriptor left when nobody holds an outcome."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def descriptors() -> int:
        return sum(
            str(tmp_path) in str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists()
        )

    file = SpillFile()
    spilled = file.write(FAILED)
    assert list(tmp_path.iterdir()) == []
    assert spilled.read() == FAILED
    del file, spilled
    gc.collect()
    assert descriptors() == 0


def test_unused_spill_file_creates_no_file() -> None:
    """Most sessions never spill."""
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    file = SpillFile()
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    del file
