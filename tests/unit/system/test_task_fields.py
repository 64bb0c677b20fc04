"""Lines of the agent's log name the tasks that they speak of, and their traces."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest

from batchflow.protocol.failed_tasks import FailedTask
from batchflow.protocol.wire import TaskItem
from batchflow.testing.storage import MemoryStorage
from node_agent.control.failed_tasks import FailedTasks
from node_agent.system.json_log import JsonLines
from node_agent.system.task_fields import MOST, task_fields, tasks_fields

SOURCES = Path(__file__).parents[3] / "node_agent"
TRACE, SPAN = "ab" * 16, "cd" * 8


def task(number: int = 1, trace: str | None = f"00-{TRACE}-{SPAN}-01") -> TaskItem:
    item = TaskItem("me", "job", str(number), "x.py", [], f"0a0a0a0a0a0a:{number}", "b")
    return replace(item, trace=trace)


def test_a_traced_task_is_named_with_the_ids_of_its_trace() -> None:
    assert task_fields(task()) == {"uid": "0a0a0a0a0a0a:1", "trace_id": TRACE, "span_id": SPAN}
    assert tasks_fields([task()]) == {"uids": ["0a0a0a0a0a0a:1"], "trace_id": TRACE, "span_id": SPAN}


@pytest.mark.parametrize(
    "trace", [None, "", "00-xyz", f"00-{TRACE}-{SPAN}-01\n", f"00-{TRACE.upper()}-{SPAN}-01"]
)
def test_a_task_without_a_trace_has_its_name_alone(trace: str | None) -> None:
    """Any program that may send can write what is no trace."""
    assert task_fields(task(trace=trace)) == {"uid": "0a0a0a0a0a0a:1"}


def test_tasks_of_one_line_are_named_with_each_trace_once_and_not_without_end() -> None:
    """Those that are submitted under one span have one trace."""
    assert tasks_fields([task(1), task(2), task(3, None)]) == {
        "uids": ["0a0a0a0a0a0a:1", "0a0a0a0a0a0a:2", "0a0a0a0a0a0a:3"],
        "trace_id": TRACE,
    }
    other = f"00-{SPAN * 2}-{SPAN}-01"
    assert tasks_fields([task(1), task(2, other), task(3)])["trace_ids"] == [TRACE, SPAN * 2]
    assert tasks_fields([]) == {"uids": []}
    assert len(tasks_fields([task(number) for number in range(100)])["uids"]) == MOST


async def test_a_line_about_a_task_has_its_trace_id(caplog: pytest.LogCaptureFixture) -> None:
    """As JSON, as Batch keeps it."""
    tasks = FailedTasks()
    tasks.keep(FailedTask(task(), "TaskFailed", "no", "host", 1.0))
    out = MemoryStorage().container("not-there")
    await tasks.flush(out)
    (record,) = [each for each in caplog.records if each.getMessage() == "failed_task_not_kept"]
    line = json.loads(JsonLines().format(record))
    assert (line["level"], line["trace_id"], line["span_id"]) == (
        logging.getLevelName(logging.WARNING),
        TRACE,
        SPAN,
    )


def test_no_line_names_a_task_without_its_trace() -> None:
    """`uid` and `uids` come from the functions that add the trace."""
    by_hand = re.compile(r"extra=\{[^}]*\"uids?\"")
    assert [path.name for path in SOURCES.rglob("*.py") if by_hand.search(path.read_text())] == []
