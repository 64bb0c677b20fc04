"""When and where a session's last tasks ran: what a report is made of."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final

from batchflow.display.report.analysis import EndedTask
from batchflow.sessions.records.recent import RecentTasks

if TYPE_CHECKING:
    from batchflow.protocol.wire import ResultItem
    from batchflow.sessions.records.tracker import Entry

MOST_RUNS: Final = 20_000
"""Tasks that are remembered, some 250 bytes each."""
_LONGEST_ERROR: Final = 200

_Row = tuple[str, str, str | None, str, str | None, str | None, float, float | None, float | None]


class TaskHistory:
    """The last tasks that ended, without their arguments and values."""

    def __init__(self, most: int = MOST_RUNS) -> None:
        self._rows: deque[_Row] = deque(maxlen=most)
        self.total: int = 0
        """Tasks that ended, also those that are not remembered any more."""
        self._recent: RecentTasks | None = None

    def watch(self) -> RecentTasks:
        """Return what is kept for live views, from the first call on."""
        if self._recent is None:
            self._recent = RecentTasks(time.time)
        return self._recent

    def add(self, entry: Entry, item: ResultItem) -> None:
        """Remember a task by its outcome."""
        self.total += 1
        if self._recent is not None:
            self._recent.add(entry, item)
        error = item.error
        self._rows.append(
            (
                entry.task_id,
                entry.command,
                item.host,
                item.status.value,
                item.kind,
                None if error is None else error.partition("\n")[0][:_LONGEST_ERROR],
                entry.submitted_at,
                item.started_at,
                item.finished_at,
            )
        )

    def runs(self) -> list[EndedTask]:
        """Return the tasks that are remembered, in the order in which they ended."""
        return [EndedTask(*row) for row in self._rows]
