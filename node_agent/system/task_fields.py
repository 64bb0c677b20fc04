"""The fields by which a log line names the tasks that it speaks of, and finds their traces."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from batchflow.protocol.wire import TaskItem

MOST: Final = 20
"""Tasks that one line names."""
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


def task_fields(item: TaskItem) -> dict[str, Any]:
    """Return `uid`, and of a task that is traced `trace_id` and `span_id` of its submission."""
    return {"uid": item.uid, **_ids(item)}


def tasks_fields(items: Sequence[TaskItem]) -> dict[str, Any]:
    """Return `uids` of the first tasks, and `trace_id` if they share one, or `trace_ids` of all of them."""
    first = items[:MOST]
    found = [ids for item in first if (ids := _ids(item))]
    traces = list(dict.fromkeys(ids["trace_id"] for ids in found))
    fields: dict[str, Any] = {"uids": [item.uid for item in first]}
    if len(first) == 1:
        return fields | _ids(first[0])
    if len(traces) == 1:
        return fields | {"trace_id": traces[0]}
    return fields | ({"trace_ids": traces} if traces else {})


def _ids(item: TaskItem) -> dict[str, str]:
    """Return the ids of a W3C `traceparent`. Any program can write a task's message, so text may be none."""
    found = None if item.trace is None else _TRACEPARENT.fullmatch(item.trace)
    return {} if found is None else {"trace_id": found[1], "span_id": found[2]}
