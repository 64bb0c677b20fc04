"""Outcomes that the client gives by itself, because no agent will."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchflow.model import Status
from batchflow.wire import ResultItem

if TYPE_CHECKING:
    from batchflow.tracker import Entry


def cancelled(entry: Entry, reason: str) -> ResultItem:
    return _outcome(entry, Status.CANCELLED, "TaskCancelled", reason)


def submit_failed(entry: Entry, reason: str) -> ResultItem:
    return _outcome(entry, Status.FAILED, "SubmitFailed", reason)


def _outcome(entry: Entry, status: Status, kind: str, reason: str) -> ResultItem:
    return ResultItem(
        uid=entry.uid,
        client=entry.client,
        job=entry.job,
        task_id=entry.task_id,
        command=entry.command,
        status=status,
        host=None,
        error=reason,
        kind=kind,
        tag=entry.tag,
        submitted_at=entry.submitted_at,
    )
