"""What a session remembers of tasks that have ended."""

from __future__ import annotations

from batchflow.model import Status
from batchflow.protocol.wire import ResultItem
from batchflow.sessions.records.history import TaskHistory
from tests.unit.sessions.records.test_tracker import make_entry


def _failed(error: str) -> ResultItem:
    return ResultItem(
        uid="me:0", client="c", job="j", task_id="0", command="x.py", status=Status.FAILED, host="node1",
        value=None, error=error, kind="TaskFailed", started_at=2.0, finished_at=3.0,
    )  # fmt: skip


def test_the_last_tasks_are_remembered_and_all_are_counted() -> None:
    history = TaskHistory(most=2)
    for number in range(3):
        history.add(make_entry(number), _failed(f"first line {number}\nsecond line"))
    assert history.total == 3
    assert [run.error for run in history.runs()] == ["first line 1", "first line 2"]


def test_a_long_error_is_cut() -> None:
    history = TaskHistory()
    history.add(make_entry(0), _failed("x" * 10_000))
    (run,) = history.runs()
    assert run.error == "x" * 200
    assert (run.node, run.status, run.kind, run.seconds) == ("node1", "failed", "TaskFailed", 1.0)
