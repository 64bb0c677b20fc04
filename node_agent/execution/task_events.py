"""What a running task tells its session: lines, log, progress, at a bounded rate."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, Literal

from batchflow.protocol.wire import EventItem
from node_agent.child.spans import MOST_SPANS, SPAN
from node_agent.execution.capture import Lines
from node_agent.system.rate import Rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from node_agent.execution.outcomes import Execution

Kind = Literal["stdout", "stderr", "log", "progress", "warning", "info"]

_PER_SECOND: Final = 100.0
_BURST: Final = 200
"""Events that are sent at once. Further ones are sent at the rate."""


class TaskEvents:
    """The events of one task. What is above the rate is left out, counted, and the count told at the end."""

    __slots__ = ("_emit", "_execution", "_lines", "_rate", "spans")

    def __init__(self, execution: Execution, emit: Callable[[Execution, EventItem], None]) -> None:
        self._execution = execution
        self._emit = emit
        self._rate = Rate(_PER_SECOND, _BURST)
        self._lines: dict[str, Lines] = {}
        self.spans: list[dict[str, Any]] | None = None
        """What the task has added to its trace."""

    def on_output(self, name: str, data: bytes) -> None:
        """Take bytes of stdout or stderr."""
        kind: Kind = "stderr" if name == "stderr" else "stdout"
        for line in self._lines.setdefault(kind, Lines()).add(data):
            self._tell(kind, line)

    def on_note(self, note: dict[str, Any]) -> None:
        """Take what the task told its engine: `kind`, `message`, `data`."""
        if note.get("kind") == SPAN:
            self._add_span(note.get("data"))
            return
        kind: Kind = "progress" if note.get("kind") == "progress" else "log"
        self._tell(kind, str(note.get("message", "")), note.get("data"))

    def _add_span(self, span: Any) -> None:
        if self._execution.trace is None or not isinstance(span, dict):
            return
        self.spans = self.spans or []
        if len(self.spans) < MOST_SPANS:
            self.spans.append(span)

    def finish(self) -> None:
        """Send what is left, for the task is over."""
        for name, lines in self._lines.items():
            for line in lines.finish():
                self._tell("stderr" if name == "stderr" else "stdout", line)
        if self._rate.dropped:
            text = f"{self._rate.dropped} events of this task were left out: too many at once"
            self._send("warning", text, {"dropped": self._rate.dropped})

    def _tell(self, kind: Kind, message: str, data: Any = None) -> None:
        if self._rate.allows(time.monotonic()):
            self._send(kind, message, data)

    def _send(self, kind: Kind, message: str, data: Any) -> None:
        execution = self._execution
        self._emit(execution, EventItem(execution.uid, execution.task_id, kind, message, time.time(), data))
