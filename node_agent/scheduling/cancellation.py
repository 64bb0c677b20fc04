"""What is known of cancelled tasks, and when to look again.

`cancel()` returns when the session's cancellation document is written. The promise: a task that has not
started a second later never starts, a running one is killed.

Rules:

- A copy of the document says what was cancelled up to the moment it was asked for. A task may start on a copy
  that was asked for at most `FRESH` seconds ago. No document means that nothing is cancelled.
- A task cannot have been cancelled before it was submitted, so one whose message is younger than `FRESH` may
  start without any copy: the warm path never waits for a blob. A handed back task is older than its message.
- A task that was let go and has not begun by then (`start_by`) does not begin: slot and agent may have stood
  still. Its slot gives it back, and it is looked at anew.
- Otherwise the task waits for a new copy. One request for a session is under way at a time.
- While tasks of a session are held, its copy is renewed when it is `RENEW_AFTER` old, so that a steady stream
  of tasks meets a fresh copy and a running task learns of its cancellation within `RENEW_AFTER` and a round
  trip. Tasks that are over within `QUIET` cause no request at all.
- A document that cannot be read is asked for again after `RETRY_AFTER`; who waits for it goes on waiting.

Invariants: a session without tasks is never asked about; a task that a known document covers never starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from batchflow.protocol.documents import Cancellation
from batchflow.protocol.wire import split_uid
from node_agent.scheduling.events import Session
from node_agent.scheduling.state import Task

FRESH: Final = 1.0
RENEW_AFTER: Final = 0.6
RETRY_AFTER: Final = 1.0
QUIET: Final = 0.25
_MOST_IDLE: Final = 256
"""Sessions without tasks whose copies are kept."""

Clearance = Literal["go", "stop", "wait"]


@dataclass(slots=True)
class _Copy:
    """A session's document, as far as it is known."""

    due_at: float = 0.0
    held: int = 0
    document: Cancellation | None = None
    """None where it cancels nothing."""
    asked_at: float | None = None
    """None: never read."""
    reading: bool = False

    def covers(self, task: Task) -> bool:
        return self.document is not None and self.document.covers(*split_uid(task.item.uid))


@dataclass(slots=True)
class CancellationCache:
    """The copies of the documents of the sessions whose tasks are held."""

    _copies: dict[Session, _Copy] = field(default_factory=dict)
    _held: dict[Session, _Copy] = field(default_factory=dict)
    """Those of sessions that have tasks here."""

    def hold(self, session: Session, now: float) -> None:
        """Count one task more of this session that is held."""
        copy = self._held.get(session)
        if copy is None:
            copy = self._held[session] = self._known(session)
            copy.due_at = max(copy.due_at, now + QUIET)
        copy.held += 1

    def release(self, session: Session) -> None:
        """Count one task less."""
        copy = self._held[session]
        copy.held -= 1
        if not copy.held:
            del self._held[session]

    def clearance(self, task: Task, now: float) -> Clearance:
        """Return whether the task may start; where it may, `task.start_by` says until when."""
        copy = self._held[task.session]
        if copy.covers(task):
            return "stop"
        start_by = task.young_until
        if copy.asked_at is not None:
            start_by = max(start_by, copy.asked_at + FRESH)
        if now > start_by:
            return "wait"
        task.start_by = min(start_by, task.expires_at)
        return "go"

    def covers(self, task: Task) -> bool:
        """Return whether what is known cancels the task."""
        return self._held[task.session].covers(task)

    def want(self, session: Session, now: float) -> None:
        """Have the document read soon, for a task waits for it."""
        copy = self._held[session]
        copy.due_at = min(copy.due_at, now)

    def due(self, now: float) -> list[Session]:
        """Return what is to be read now; each must be answered by `read` or `failed`."""
        sessions = []
        for session, copy in self._held.items():
            if not copy.reading and copy.due_at <= now:
                copy.reading = True
                sessions.append(session)
        return sessions

    def read(self, session: Session, document: Cancellation | None, asked_at: float) -> None:
        """Take a document as it was at `asked_at`, or later."""
        if (copy := self._copies.get(session)) is not None:
            copy.document = document if document is not None and document.cancels_anything else None
            copy.asked_at, copy.reading = asked_at, False
            copy.due_at = asked_at + RENEW_AFTER

    def failed(self, session: Session, now: float) -> None:
        """Have a document that could not be read asked for again."""
        if (copy := self._copies.get(session)) is not None:
            copy.reading = False
            copy.due_at = now + RETRY_AFTER

    def next_deadline(self) -> float | None:
        """Return when `due` has something to say, if nothing else happens before."""
        return min((copy.due_at for copy in self._held.values() if not copy.reading), default=None)

    def _known(self, session: Session) -> _Copy:
        copy = self._copies.get(session)
        if copy is None:
            if len(self._copies) >= _MOST_IDLE + len(self._held):
                self._copies = dict(self._held)
            copy = self._copies[session] = _Copy()
        return copy
