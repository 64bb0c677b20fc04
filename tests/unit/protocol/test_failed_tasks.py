"""A task that failed, as it is kept: it comes back as it travelled, whatever code on a node wrote there."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchflow.errors import ProtocolError
from batchflow.protocol.failed_tasks import FailedTask, failed_prefix, uid_of
from batchflow.protocol.wire import Reference, TaskItem

TASK = TaskItem(
    client="me",
    job="default",
    task_id="a label",
    command="x.py",
    params=[1, {"a": None}],
    uid="0f0f0f0f0f0f:17",
    bundle="b" * 64,
    environment="e" * 64,
    variables="variables/sessions/default/me/1.json",
    attempt=2,
)


@given(error=st.text(max_size=3000), node=st.none() | st.text(max_size=20))
def test_document_comes_back(error: str, node: str | None) -> None:
    read = FailedTask.decode(FailedTask(TASK, "TaskFailed", error, node, 12.5).encode())
    assert read.task == TASK
    assert (read.kind, read.node, read.at) == ("TaskFailed", node, 12.5)
    assert read.error == error[:2000]


def test_arguments_by_reference_come_back() -> None:
    task = TaskItem(**{**_fields(TASK), "params": Reference("args/default/me/x.json", 9)})
    assert FailedTask.decode(FailedTask(task, "TaskFailed", "", None, 1.0).encode()).task == task


def test_blob_is_named_by_job_client_and_uid() -> None:
    blob = FailedTask(TASK, "TaskFailed", "", None, 1.0).blob
    assert blob.startswith(failed_prefix("default", "me"))
    assert uid_of(blob) == TASK.uid


@given(data=st.binary(max_size=60) | st.sampled_from([b"{}", b'{"v":1,"task":{}}', b'{"v":2}', b"[]"]))
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        FailedTask.decode(data)


def _fields(task: TaskItem) -> dict[str, Any]:
    return {name: getattr(task, name) for name in TaskItem.__dataclass_fields__}
