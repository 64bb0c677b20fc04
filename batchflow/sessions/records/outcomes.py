"""The outcomes of a session's tasks: which calls wait for them, and what they become for the user."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from batchflow.errors import SessionClosed
from batchflow.files import fetch
from batchflow.model import Result, Status
from batchflow.protocol import layout
from batchflow.sessions.records.history import TaskHistory
from batchflow.support.waiting import ChangeNotifier, Waiters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from batchflow.errors import ServiceError
    from batchflow.protocol.wire import ResultItem
    from batchflow.sessions.records.checkpoint import DeliveryRecord
    from batchflow.sessions.records.context import SessionContext
    from batchflow.sessions.records.health import ProblemSource
    from batchflow.sessions.records.tracker import Entry

_MOST_AHEAD: Final = 8
"""Outcomes whose values are fetched before their turn: as many as are fetched at once."""


class Outcomes:
    """Gives tasks their outcomes, and wakes the calls that wait for an outcome or for room in the outbox."""

    def __init__(
        self,
        context: SessionContext,
        record: DeliveryRecord | None,
        raised: Callable[[ResultItem], Exception | None],
    ) -> None:
        """`record`: of a session that can be found again by its name. `raised` rebuilds an exception."""
        self._raised = raised
        self._context = context
        self._tracker = context.tracker
        self._lifetime = context.lifetime
        self._problems = context.problems
        self._record = record
        self.change: ChangeNotifier = ChangeNotifier()
        """Notified when something happened that a reader of results may care for."""
        self.room: ChangeNotifier = ChangeNotifier()
        """Notified when something has left the outbox, or never will."""
        self._waiters = Waiters()
        """Calls that wait for a task's outcome."""
        self.on_ended: Callable[[Entry], None] | None = None
        """Called with each task that has its outcome, for the tasks that wait for it."""
        self.on_accepted: Callable[[Entry], None] | None = None
        """Called with each task that the broker has, where tasks that wait outlive the session."""
        self.is_restored: Callable[[], bool] = lambda: True
        """Whether it is known what waits since earlier sessions."""
        self.outlives: Callable[[Entry], bool] = lambda _: False
        """Whether a later session may go on with a task, because it waits or waited for others."""
        self.owe: Callable[[Entry], None] = lambda _: None
        """Called with each of these that the session itself gave its outcome."""
        self._accepting = Waiters()
        """Calls that wait until the broker has a task."""
        self.bring: Callable[[Entry], None] | None = None
        """Fetches the value of an outcome that has none here."""
        self._bringing: set[Entry] = set()
        self.history: TaskHistory = TaskHistory()
        self._problems.subscribe(self._fail_waiters)

    # ---- what tasks and streams ask for

    @property
    def closed(self) -> bool:
        """Whether the session is closing, or closed."""
        return self._lifetime.closed

    @property
    def close_reason(self) -> str:
        return self._lifetime.reason

    def check_home(self) -> None:
        """Raise `WrongEventLoop` outside of the session's event loop."""
        self._lifetime.affinity.check()

    @property
    def outstanding(self) -> int:
        """Outcomes and values to come; at least one while it is not known what earlier holders are owed."""
        unknown = self._record is not None and not (self._record.loaded and self.is_restored())
        return len(self._tracker) + unknown + len(self._bringing)

    @property
    def unread(self) -> int:
        """Outcomes that have come and that no call has claimed."""
        return self._tracker.unread

    def next_unclaimed(self) -> Result | None:
        """Hand out the oldest outcome that no call has claimed; None when there is none.

        None as well while its value is being fetched: `change` tells when it has come.

        Raises `JournalError`; then the outcome stays.
        """
        self.check_home()
        first = self._tracker.first_unclaimed()
        if first is not None and not first.is_here:
            for each in islice(self._tracker.unclaimed, _MOST_AHEAD):
                if not (each.is_here or each.claimed):
                    self._ask_for(each)
            return None
        entry = self._tracker.next_unclaimed()
        return None if entry is None else self.result(entry)

    def result(self, entry: Entry) -> Result:
        """Return the public form of an outcome, with the way to the files that the task left."""
        item = entry.read()
        result = entry.result(item)
        if result.raised is not None:
            result = replace(result, original=self._raised(item))
        if not result.files:
            return result
        prefix = layout.outputs_prefix(entry.job, entry.client, entry.uid, item.folder)

        async def download(name: str) -> BinaryIO:
            return await fetch(self._context.runtime.out, prefix + name)

        return replace(result, download=download)

    def passed_value(self, entry: Entry) -> Any:
        """Return what a task that has ended hands to those that take it as an argument.

        Its value; of one that failed, the `Result` without what only this process can open. Raises OSError
        when it cannot be read from the temporary file.
        """
        result = entry.result(entry.read())
        return result.value if result.ok else replace(result, args=None, tag=None, download=None)

    async def until_done(self, entry: Entry) -> None:
        """Claim the task and return when it has its outcome."""
        self.check_home()
        self._tracker.claim(entry)
        if not entry.done:
            self._lifetime.check_open()
            self._problems.check()
            await self._waiters.wait(entry.sequence)
        await self.until_here(entry)
        entry.deliver()

    async def until_here(self, entry: Entry) -> None:
        """Return when an outcome has its value, which may lie in a blob.

        A closing session still fetches values, for tasks that are ready. Raises `SessionClosed` at its end.
        """
        while not entry.is_here:
            self._lifetime.check_not_ended()
            self._ask_for(entry)
            await self.change.wait()

    def brought(self, entry: Entry) -> None:
        """Note that an outcome has its value."""
        self._bringing.discard(entry)
        self.change.notify()

    def _ask_for(self, entry: Entry) -> None:
        """Have a value fetched, once."""
        assert self.bring is not None
        if entry not in self._bringing:
            self._bringing.add(entry)
            self.bring(entry)

    async def until_accepted(self, entry: Entry) -> None:
        """Return when the broker has the task. Raises the task's error when it never will."""
        self.check_home()
        if entry.status in (Status.WAITING, Status.SENDING):
            self._lifetime.check_open()
            self._problems.check("sending")
            await self._accepting.wait(entry.sequence)
        if entry.done and entry.status is not Status.SUCCEEDED and not entry.was_accepted:
            entry.result(entry.read()).unwrap()

    async def next_change(self) -> None:
        """Wait until something happened that a reader of results may care for."""
        self._problems.check()
        await self.change.wait()

    async def next_room(self) -> None:
        """Wait until something has left the outbox, or never will."""
        self._problems.check("sending")
        await self.room.wait()

    # ---- what the parts of the session report

    def accepted(self, entries: Iterable[Entry]) -> None:
        """Note that the broker has these tasks."""
        self._tracker.accepted(entries)
        for entry in entries:
            self._accepting.wake(entry.sequence)
            if self.on_accepted is not None:
                self.on_accepted(entry)

    def resolve(
        self, entry: Entry, outcome: ResultItem, *, expect_message: Callable[[Entry], None] | None = None
    ) -> bool:
        """Give a task an outcome of the session's own. Returns False for a duplicate.

        `expect_message` is called when a message with an agent's outcome of the task is still to come.
        Without it, no later holder of the mailbox is told of the task. If one may go on with the task, the
        outcome counts as delivered when it was shown.
        """
        if not self._tracker.resolve(entry, outcome):
            return False
        if expect_message is not None:
            expect_message(entry)
        elif self.outlives(entry):
            self.owe(entry)
        elif self._record is not None:
            self._record.withdraw(entry.uid)
        self.announce(entry)
        return True

    def announce(self, entry: Entry) -> None:
        """Wake the calls that wait for a task which has its outcome now, or for room in the outbox."""
        item = entry.read()
        self.history.add(entry, item)
        if self._context.telemetry is not None:
            self._context.telemetry.ended(entry, item)
        if (monitor := self._context.runtime.sessions.monitor) is not None:
            monitor.task(self._context.runtime, item, entry.trace)
        self.room.notify()
        self._waiters.wake(entry.sequence)
        self._accepting.wake(entry.sequence)
        self.tell_ended(entry)
        if (on_done := entry.on_done) is not None:
            entry.on_done = None  # a task that is kept must not keep its map, and all the inputs
            on_done(entry)
        if entry.arguments_blob is not None:
            self._context.arguments.ended(entry.arguments_blob, failed=entry.status is Status.FAILED)

    def tell_ended(self, entry: Entry) -> None:
        """Let the tasks that wait for one that has its outcome go on; before that outcome is delivered."""
        if self.on_ended is not None:
            self.on_ended(entry)

    def end(self) -> None:
        """Raise `SessionClosed` in every call that waits: no outcome comes any more."""
        self._lifetime.ended = True
        closed = SessionClosed(self._lifetime.reason)
        self._waiters.fail(closed)
        self._accepting.fail(closed)
        self.change.notify()
        self.room.notify()

    def _fail_waiters(self, source: ProblemSource, problem: ServiceError) -> None:
        self._waiters.fail(problem)
        self.change.notify()
        if source == "sending":
            self._accepting.fail(problem)
            self.room.notify()
