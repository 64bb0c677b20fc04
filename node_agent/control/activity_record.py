"""What the agent's slots did since the record was last written. Pure.

The record is bounded in memory and in bytes a second. What does not fit is dropped and counted. A quarter of
the room is for tasks that failed, so that a flood of short tasks does not push them out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

from batchflow.model import Status
from batchflow.protocol.activity import MOST_TEXT, SlotRun

if TYPE_CHECKING:
    from batchflow.protocol.wire import TaskItem

BYTES_A_SECOND: Final = 8 * 1024
_ROW: Final = 100
"""Bytes of a short row."""
_FAILED, _CANCELLED, _SUCCEEDED = Status.FAILED, Status.CANCELLED, Status.SUCCEEDED


class ActivityRecord:
    """Collects the tasks that end. `take` gives them, and begins anew."""

    def __init__(self, interval: float) -> None:
        """`interval`: seconds between two takes."""
        self._most_bytes = round(BYTES_A_SECOND * max(1.0, interval))
        self._most = self._most_bytes // _ROW
        self._most_succeeded = self._most * 3 // 4
        self._rows: list[SlotRun] = []
        self._counts = {_SUCCEEDED: 0, _FAILED: 0, _CANCELLED: 0}

    def __bool__(self) -> bool:
        return any(self._counts.values())

    def ended(
        self, item: TaskItem, status: Status, error: str | None, started: float | None, finished: float
    ) -> None:
        """Note a task that has ended. Every task comes by here, so what is too much costs next to nothing."""
        self._counts[status] += 1
        if len(self._rows) >= (self._most_succeeded if status is _SUCCEEDED else self._most):
            return
        self._rows.append(
            SlotRun(
                item.uid,
                item.task_id,
                item.command,
                item.job,
                item.client,
                item.submitted_at,
                finished if started is None else started,
                finished,
                status.value,
                "" if error is None or status is _SUCCEEDED else error[: MOST_TEXT * 2],
            )
        )

    def take(self) -> tuple[dict[Status, int], list[SlotRun]]:
        """Return how many tasks ended how, and as many of their runs as fit, the failed ones first."""
        counts, rows = self._counts, self._rows
        self._counts, self._rows = dict.fromkeys(counts, 0), []
        left, taken = self._most_bytes, []
        for row in sorted(rows, key=lambda row: row.status == _SUCCEEDED.value):
            short = _short(row)
            left -= len(orjson.dumps(tuple(short))) + 1
            if left < 0:
                break
            taken.append(short)
        taken.sort(key=lambda row: row.finished_at)
        return counts, taken

    def give_back(self, counts: dict[Status, int]) -> None:
        """Count tasks again whose record could not be written. Their runs are lost."""
        for status, number in counts.items():
            self._counts[status] += number


def _short(row: SlotRun) -> SlotRun:
    error = next(iter(row.error.strip().splitlines()), "")
    return SlotRun(
        uid=_cut(row.uid),
        task_id=_cut(row.task_id),
        command=_cut(row.command),
        job=_cut(row.job),
        client=_cut(row.client),
        submitted_at=round(row.submitted_at, 3),
        started_at=round(row.started_at, 4),
        finished_at=round(row.finished_at, 4),
        status=row.status,
        error=_cut(error),
    )


def _cut(text: str) -> str:
    """Return a text that can be written as JSON, and is not too long."""
    if not text.isascii():
        text = text.encode(errors="replace").decode()
    return text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + "…"
