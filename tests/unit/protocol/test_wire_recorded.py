"""The bytes on the wire stay what earlier versions wrote: clients and agents of both work together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from batchflow.model import Attempt, Status
from batchflow.protocol import wire
from batchflow.protocol.wire import EventItem, Item, Reference, ResultItem, TaskItem

PAST = (Attempt(1, "it broke", "node-1", 5.25), Attempt(2, "töt", "", 6.0))


def task(**changes: Any) -> TaskItem:
    plain = {
        "client": "client", "job": "job", "task_id": "7", "command": "x.py", "params": [1, "ä", None],
        "uid": "abc:7", "bundle": "f" * 64, "submitted_at": 12.5,
    }  # fmt: skip
    return TaskItem(**{**plain, **changes})


def result(**changes: Any) -> ResultItem:
    plain = {
        "uid": "abc:7", "client": "client", "job": "job", "task_id": "7", "command": "x.py",
        "status": Status.SUCCEEDED, "host": "host", "value": {"a": [1.5]}, "error": None,
        "submitted_at": 1.0, "started_at": 2.0, "finished_at": 3.0,
    }  # fmt: skip
    return ResultItem(**{**plain, **changes})


def failure(**changes: Any) -> ResultItem:
    return result(**{"status": Status.FAILED, "value": None, "error": "it broke", **changes})


def event(**changes: Any) -> EventItem:
    plain = {"uid": "abc:7", "task_id": "7", "kind": "stdout", "message": "a line", "at": 1.0}
    return EventItem(**{**plain, **changes})


ALL_OF_A_TASK: dict[str, Any] = {
    "params": Reference("args/7", 123), "timeout": 1.5, "memory_limit": 5,
    "retry": {"attempts": 2, "on": ["A"]}, "stream_output": True, "tag": {"k": 0}, "attempt": 2, "hop": 3,
    "history": PAST, "trace": "00-1-2-01",
}  # fmt: skip
ALL_OF_A_RESULT: dict[str, Any] = {
    "value": Reference("results/7", 123), "kind": "TaskFailed", "traceback": "in x.py", "tag": 0,
    "attempt": 2, "history": PAST, "stdout": "out\n", "stderr": "err\n", "files": ("a", "b/c"),
}  # fmt: skip

DATA: list[Any] = [0, False, [], {"n": 1}]

ITEMS: dict[str, Item] = {
    "task": task(),
    "task without a time": task(submitted_at=0.0),
    "task of whole seconds": task(submitted_at=12),
    "task with everything": task(**ALL_OF_A_TASK),
    **{f"task with {name}": task(**{name: value}) for name, value in ALL_OF_A_TASK.items()},
    "result": result(),
    "result without times": result(submitted_at=0.0, started_at=None, finished_at=None),
    "result without an end": result(finished_at=None),
    "result of no host": result(host=None),
    "result of nothing": result(value=None),
    "result with everything": result(**ALL_OF_A_RESULT),
    **{f"result with {name}": result(**{name: value}) for name, value in ALL_OF_A_RESULT.items()},
    "failure": failure(),
    "failure without words": failure(error=None),
    "failure of empty words": failure(error=""),
    "failure with everything": failure(**ALL_OF_A_RESULT),
    "cancelled": failure(status=Status.CANCELLED, host=None, kind="TaskCancelled", started_at=None),
    "event": event(),
    **{f"event with {data!r}": event(data=data) for data in DATA},
}
RECORD = Path(__file__).with_name("recorded_wire.json")
RECORDED: dict[str, str] = json.loads(RECORD.read_text()) if RECORD.exists() else {}


def test_every_item_is_recorded() -> None:
    assert RECORDED.keys() == ITEMS.keys()


@pytest.mark.parametrize("name", ITEMS)
def test_encoded_item_has_the_recorded_bytes(name: str) -> None:
    assert wire.encode(ITEMS[name]) == RECORDED[name].encode()


@pytest.mark.parametrize("name", ITEMS)
def test_recorded_bytes_are_read_as_the_item(name: str) -> None:
    item = ITEMS[name]
    kind: wire.PackType = (
        "tasks" if isinstance(item, TaskItem) else "results" if isinstance(item, ResultItem) else "events"
    )
    (read,) = wire.decode(wire.join(kind, [RECORDED[name].encode()]))
    if isinstance(item, ResultItem) and item.status is not Status.SUCCEEDED and not item.error:
        assert isinstance(read, ResultItem)
        assert read.error == item.status.value
    else:
        assert read == item
