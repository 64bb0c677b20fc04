"""What a session knows of its tasks, and the outcomes that it gives to tasks by itself. Pure.

States of a task: in the outbox (sending) -> taken for a send -> queued -> done; from any of the first three
straight to done, by a result, a cancellation or a send that failed for good. A task that waits for others is
held (waiting) before it comes into the outbox, and may be done straight from there. A queued one that a
heartbeat names is running, until a later heartbeat does not.

Invariants:

- Every task has exactly one outcome: the first one wins, later ones are duplicates and change nothing.
- `counts` always adds up to the number of tasks submitted.
- An outcome is delivered once to the readers of results, unless a call claimed it before. A holder of the
  task reads it any number of times.
- A message of results is acknowledged when its last outcome was delivered, and not before.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakValueDictionary

from batchflow.errors import JournalError
from batchflow.model import Counts, Result, Status
from batchflow.protocol.dead_letters import EXPIRED
from batchflow.protocol.packing import Pack
from batchflow.protocol.values.kept import KeptArguments
from batchflow.protocol.values.received import ReceivedValue
from batchflow.protocol.wire import Reference, ResultItem, with_expiry
from batchflow.support.frozen import frozen, maker

if TYPE_CHECKING:
    from batchflow.protocol.lanes import Priority
    from batchflow.sessions.records.task_options import TaskOptions
    from batchflow.settings import SessionSettings

_result: Final = maker(Result)


class Spilled(Protocol):
    """An outcome that lies in a file until it is asked for."""

    def read(self) -> ResultItem: ...


@dataclass(slots=True, eq=False)
class Acknowledgement:
    """A message of results, to be completed when `remaining` has come down to 0."""

    on_delivered: Callable[[], None]
    """Called once, when the last outcome of the message was delivered."""
    remaining: int
    """Outcomes of the message that are not delivered."""

    def deliver(self) -> None:
        """Note the delivery of one outcome. Raises `JournalError`; then it was not delivered."""
        self.remaining -= 1
        if self.remaining == 0:
            try:
                self.on_delivered()
            except JournalError:
                self.remaining += 1
                raise


@frozen
class RunningOn:
    """Where a task runs, and since when, as its agent's heartbeat says."""

    host: str
    since: float
    """Seconds since the epoch, by the node's clock."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Entry:
    """A task, as its session sees it."""

    sequence: int
    index: int
    uid: str
    task_id: str
    command: str
    client: str
    job: str
    submitted_at: float
    tag: Any = None
    item: bytes | None = None
    """What travels, as long as it waits in the outbox."""
    status: Status = Status.SENDING
    outcome: ResultItem | Spilled | None = None
    acknowledgement: Acknowledgement | None = None
    claimed: bool = False
    was_accepted: bool = False
    repeated: bool = False
    """Perhaps shown before, by an earlier holder of the mailbox."""
    running_on: RunningOn | None = None
    """Where it ran at an agent's last heartbeat."""
    arguments: list[Any] | KeptArguments | None = None
    arguments_blob: str | None = None
    options: TaskOptions | None = None
    """What a repetition of it is submitted with beside command and arguments."""
    trace: Any = None
    """Its `TaskTrace`; None for one that is not traced."""
    begin_by: float | None = None
    """When it expires, by the clock of the event loop; None: never."""
    priority: Priority | None = None
    """Of its own, where it goes to another lane than its session's tasks; None: it does not."""
    on_done: Callable[[Entry], None] | None = None
    """For one listener, such as the map that submitted it."""
    reference: Reference | None = None
    """The blob with the value that tasks take, which was not fetched when it came."""
    is_here: bool = True
    """Whether the outcome has its value: not before that was fetched."""

    @property
    def done(self) -> bool:
        return self.outcome is not None

    @property
    def is_settled(self) -> bool:
        """Whether the broker has it, or never needs it. One that is being sent may still fail."""
        return self.was_accepted or self.done

    @property
    def is_unsent(self) -> bool:
        """Whether a task that was held is not sent, and a later session may still give it its outcome.

        It waits, or the session itself gave it an outcome that was not delivered. No message comes of it.
        """
        own = self.done and not self.was_accepted and self.acknowledgement is not None
        return own or self.status is Status.WAITING

    def read(self) -> ResultItem:
        """Return the outcome, which must be there."""
        assert self.outcome is not None
        return self.outcome if isinstance(self.outcome, ResultItem) else self.outcome.read()

    def result(self, item: ResultItem) -> Result:
        """Return the public form of the outcome, as `read` gave it."""
        kept = self.arguments
        value = item.value
        return _result(
            task_id=self.task_id,
            job_id=self.job,
            client=self.client,
            command=self.command,
            status=item.status,
            index=self.index,
            value=value.value if type(value) is ReceivedValue else value,
            error=item.error,
            kind=item.kind,
            traceback=item.traceback,
            raised=item.raised,
            tag=self.tag,
            args=kept.open() if isinstance(kept, KeptArguments) else kept,
            node=item.host,
            attempt=item.attempt,
            attempts=item.history,
            stdout=item.stdout,
            stderr=item.stderr,
            submitted_at=self.submitted_at,
            started_at=item.started_at,
            finished_at=item.finished_at,
            files=item.files,
            repeated=self.repeated,
        )

    def learn(self, item: ResultItem) -> None:
        """Take the outcome of a task of an earlier session, of which nothing else may be known."""
        self.task_id, self.command, self.tag = item.task_id, item.command, item.tag
        self.submitted_at, self.status, self.outcome = item.submitted_at, item.status, item
        self._note_place(item)

    def _note_place(self, item: ResultItem) -> None:
        if type(item.value) is Reference:
            self.reference, self.is_here = item.value, False

    def settle(self, outcome: ResultItem) -> None:
        """Take the outcome, whose value may lie in a blob."""
        self.outcome = outcome
        self._note_place(outcome)

    def deliver(self) -> None:
        """Note that the user has the outcome. Idempotent. Raises `JournalError`; then the outcome stays."""
        if self.trace is not None:
            self.trace.delivered()
        acknowledgement, self.acknowledgement = self.acknowledgement, None
        if acknowledgement is not None:
            try:
                acknowledgement.deliver()
            except JournalError:
                self.acknowledgement = acknowledgement
                raise

    def drop(self) -> None:
        """Let an outcome that no call reads count as delivered.

        If the journal cannot be written, the next session of this name delivers it.
        """
        with suppress(JournalError):
            self.deliver()

    def abandon(self) -> None:
        """Drop the outcome as soon as there is one."""
        if self.done:
            self.drop()
        else:
            self.on_done = Entry.drop


@dataclass(slots=True)
class Tracker:
    """All tasks of a session that have no outcome, and the outcomes that no call has claimed."""

    outbox: deque[Entry] = field(default_factory=deque)
    """In the order in which they became ready; may hold entries that are done meanwhile."""
    aside: dict[Priority, deque[Entry]] = field(default_factory=dict)
    """What goes to other lanes than the outbox, by priority, each as that."""
    outbox_bytes: int = 0
    """Of what waits in the outbox, as it travels."""
    end_of_burst: bool = False
    """Whether the newest task ended a list, or another source of inputs: no task is likely to follow soon."""
    filling: int = 0
    """How many maps are being submitted, and do not wait for their readers."""
    unclaimed: deque[Entry] = field(default_factory=deque)
    """In the order of arrival; may hold entries that were claimed meanwhile."""
    _stale: int = 0
    """How many of those."""
    labels: WeakValueDictionary[str, Entry] = field(default_factory=WeakValueDictionary)
    """The newest task of each label that the user gave, as long as anything holds the task."""
    _held: deque[Entry] = field(default_factory=deque)
    """Tasks that waited for others, or go aside, in the order of submission until they are sent."""
    _open: dict[int, Entry] = field(default_factory=dict)
    _tally: dict[Status, int] = field(default_factory=lambda: dict.fromkeys(Status, 0))
    _submitted: int = 0
    _running: dict[int, Entry] = field(default_factory=dict)
    """Tasks that were seen running."""
    _owed: int = 0
    """Tasks of earlier holders of the mailbox that have no outcome."""

    def __len__(self) -> int:
        """Return how many tasks have no outcome, those of earlier holders included."""
        return len(self._open) + self._owed

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._open.values()))

    @property
    def counts(self) -> Counts:
        return Counts(**{status.value: number for status, number in self._tally.items()})

    @property
    def sending(self) -> int:
        return self._tally[Status.SENDING]

    @property
    def waiting(self) -> int:
        """How many tasks wait for others."""
        return self._tally[Status.WAITING]

    @property
    def queued(self) -> int:
        """How many tasks the broker has accepted that have no outcome."""
        return self._tally[Status.QUEUED] + self._tally[Status.RUNNING]

    def has_room(self, settings: SessionSettings) -> bool:
        """Return whether the outbox takes one more task."""
        return self.sending < settings.outbox and self.outbox_bytes < settings.outbox_bytes

    @property
    def under_way(self) -> int:
        """How many tasks were taken for a send and have no outcome."""
        return self.queued + max(0, self.sending - sum(map(len, self._queues())))

    @property
    def unread(self) -> int:
        """How many outcomes no call has claimed."""
        return len(self.unclaimed) - self._stale

    def unread_by_status(self) -> Counter[Status]:
        """Count the outcomes that no call has claimed by their status. A later holder is shown them."""
        return Counter(entry.status for entry in self.unclaimed if not entry.claimed)

    def next_sequence(self) -> int:
        return self._submitted

    def next_unsent(self) -> int:
        """Return the lowest sequence number of a task that may still be taken for a send, or be given up.

        In the outbox only those that were held are out of order: what stands behind one was submitted later.
        """
        first = self.outbox[0].sequence if self.outbox else self._submitted
        self._forget_held()
        return min(first, self._held[0].sequence) if self._held else first

    def _forget_held(self) -> None:
        while self._held and self._held[0].is_settled and not self._held[0].is_unsent:
            self._held.popleft()

    def unsent(self) -> list[Entry]:
        """Return the tasks in the outbox."""
        return [entry for queue in self._queues() for entry in queue if entry.item is not None]

    def _queues(self) -> Iterable[deque[Entry]]:
        return (self.outbox, *self.aside.values())

    def queue(self, priority: Priority | None) -> deque[Entry]:
        """Return what goes to the lane of a priority; None: of the session's."""
        return self.outbox if priority is None else self.aside.setdefault(priority, deque())

    def sent_beyond(self, first: int, in_flight: list[Entry]) -> list[tuple[int, int]]:
        """Return the numbers from `first` on that the broker has, as intervals: those that are not held back.

        `in_flight`: what is being sent.
        """
        if not self._held:
            return []
        waiting = [entry for entry in self._held if entry.is_unsent]
        unsent = {entry.sequence for entry in (*waiting, *self.unsent(), *in_flight)}
        found: list[tuple[int, int]] = []
        for number in sorted({*unsent, self._submitted}):
            if number > first:
                found.append((first, number - 1))
            first = number + 1
        return found

    def add(self, entry: Entry) -> None:
        """Put a new task, with the next sequence number, into the outbox, or aside."""
        self._count(entry)
        self.outbox_bytes += 0 if entry.item is None else len(entry.item)
        if entry.priority is None:
            self.outbox.append(entry)
        else:
            self._forget_held()
            self._held.append(entry)  # it is sent out of order, as tasks are that waited for others
            self.queue(entry.priority).append(entry)
        self.end_of_burst = False

    def hold(self, entry: Entry) -> None:
        """Note a new task, with the next sequence number, that waits for others."""
        entry.status = Status.WAITING
        self._count(entry)
        self._held.append(entry)

    def release(self, entry: Entry, item: bytes) -> None:
        """Put a task that was held into the outbox. `item`: what travels."""
        entry.item = item
        self._move(entry, Status.SENDING)
        self.outbox_bytes += len(item)
        self.queue(entry.priority).append(entry)

    def _count(self, entry: Entry) -> None:
        assert entry.sequence == self._submitted
        self._submitted += 1
        self._open[entry.sequence] = entry
        self._tally[entry.status] += 1

    def take(
        self, pack: Pack, now: float = 0.0, priority: Priority | None = None
    ) -> tuple[list[Entry], list[bytes]]:
        """Remove and return the next entries that share a message, and their items.

        `priority`: of the lane that they go to; None: of the session's.
        `now`: by the clock of the event loop; what is left until a task expires travels with it.
        """
        taken: list[Entry] = []
        items: list[bytes] = []
        queue = self.queue(priority)
        while queue:
            entry = queue[0]
            if entry.item is not None:
                if not pack.admits(entry.command, len(entry.item) + 1):
                    break
                taken.append(entry)
                items.append(
                    entry.item if entry.begin_by is None else with_expiry(entry.item, entry.begin_by - now)
                )
                self._forget_item(entry)
            queue.popleft()
        return taken, items

    def accepted(self, entries: Iterable[Entry]) -> None:
        """Note that the broker has these tasks."""
        for entry in entries:
            entry.was_accepted = True
            if not entry.done:
                self._move(entry, Status.QUEUED)

    def seen_running(self, seen: Mapping[int, RunningOn], is_known: Callable[[str], bool]) -> None:
        """Note which tasks run where. `seen`: by their numbers.

        `is_known`: whether all that runs on this host is in `seen`. What is not is queued again.
        """
        for entry in list(self._running.values()):
            assert entry.running_on is not None
            if entry.sequence not in seen and is_known(entry.running_on.host):
                del self._running[entry.sequence]
                entry.running_on = None
                self._move(entry, Status.QUEUED)
        for sequence, where in seen.items():
            found = self._open.get(sequence)
            if found is not None and found.status in (Status.QUEUED, Status.RUNNING):
                found.running_on = where
                self._running[sequence] = found
                self._move(found, Status.RUNNING)

    def find(self, sequence: int) -> Entry | None:
        """Return the task of that number, if it has no outcome yet."""
        return self._open.get(sequence)

    def labelled(self, task_id: str) -> Entry | None:
        """Return the newest task of that label that is under way, unread, or held by a handle."""
        entry = self.labels.get(task_id)
        if entry is None and task_id.isdecimal():
            entry = self._open.get(int(task_id))
        if entry is None:
            entry = next((each for each in reversed(self.unclaimed) if each.task_id == task_id), None)
        return entry

    def resolve(
        self, entry: Entry, outcome: ResultItem, acknowledgement: Acknowledgement | None = None
    ) -> bool:
        """Give a task its outcome. False, and nothing changes, when it has one already.

        With an acknowledgement it came in a message, so the broker must have had the task.
        """
        if entry.done:
            return False
        entry.was_accepted |= acknowledgement is not None
        self._open.pop(entry.sequence, None)
        if entry.status is Status.RUNNING:
            del self._running[entry.sequence]
        entry.settle(outcome)
        entry.acknowledgement = acknowledgement
        self._forget_item(entry)
        self._move(entry, outcome.status)
        if not entry.claimed:
            self.unclaimed.append(entry)
        return True

    def claim(self, entry: Entry) -> None:
        """Keep a task's outcome for the calls that await it, away from readers of results. Idempotent."""
        if entry.claimed:
            return
        entry.claimed = True
        if entry.done:
            self._stale += 1
            while self.unclaimed and self.unclaimed[0].claimed:
                self.unclaimed.popleft()
                self._stale -= 1
            if self._stale > 64 and self._stale * 2 > len(self.unclaimed):
                self.unclaimed = deque(other for other in self.unclaimed if not other.claimed)
                self._stale = 0

    def expect(self, owed: int) -> None:
        """Add the tasks of earlier holders of the mailbox whose outcomes are still to come."""
        self._owed += owed
        self._tally[Status.QUEUED] += owed

    def settle_owed(self) -> None:
        """Remove one of them: its outcome has come, or never will."""
        self._owed -= 1
        self._tally[Status.QUEUED] -= 1

    def adopt(
        self, entry: Entry, outcome: ResultItem, acknowledgement: Acknowledgement, *, owed: bool = False
    ) -> None:
        """Take in an outcome of an earlier holder of the mailbox, to be delivered like an own one.

        It counts among our tasks if it was expected.
        """
        if owed:
            self.settle_owed()
            self._tally[outcome.status] += 1
        entry.settle(outcome)
        entry.acknowledgement = acknowledgement
        entry.status = outcome.status
        self.unclaimed.append(entry)

    def fetched(self, entry: Entry, outcome: ResultItem) -> None:
        """Complete an outcome by its value, or by the failure that stands for one that is gone."""
        entry.outcome, entry.is_here = outcome, True
        if outcome.status is not entry.status:
            self._move(entry, outcome.status)

    def first_unclaimed(self) -> Entry | None:
        """Return the oldest outcome that no call has claimed; None when there is none."""
        while self.unclaimed and self.unclaimed[0].claimed:
            self.unclaimed.popleft()
            self._stale -= 1
        return self.unclaimed[0] if self.unclaimed else None

    def next_unclaimed(self) -> Entry | None:
        """Return the oldest outcome that no call has claimed, as delivered; None when there is none.

        Raises `JournalError`; then the outcome stays the oldest.
        """
        if (entry := self.first_unclaimed()) is not None:
            entry.deliver()
            entry.claimed = True
            self.unclaimed.popleft()
        return entry

    def _forget_item(self, entry: Entry) -> None:
        """Free the bytes of a task that was taken for a send, or is not sent."""
        if entry.item is not None:
            self.outbox_bytes -= len(entry.item)
            entry.item = None

    def _move(self, entry: Entry, status: Status) -> None:
        self._tally[entry.status] -= 1
        self._tally[status] += 1
        entry.status = status


def cancelled_result(entry: Entry, reason: str) -> ResultItem:
    return _outcome(entry, Status.CANCELLED, "TaskCancelled", reason)


def submit_failed_result(entry: Entry, reason: str) -> ResultItem:
    return _outcome(entry, Status.FAILED, "SubmitFailed", reason)


def lost_result(entry: Entry) -> ResultItem:
    """Return the outcome of a task that ended in an earlier session, and of which no result is left."""
    text = "it ended in an earlier session, and its result is gone"
    return _outcome(entry, Status.FAILED, "TaskFailed", text)


def dependency_failed_result(entry: Entry, failed: Entry) -> ResultItem:
    """Return the outcome of a task for which another one, that failed, was to end first."""
    item = failed.read()
    if item.kind == "DependencyFailed":
        return _outcome(entry, Status.FAILED, "DependencyFailed", item.error or "")
    what = f"it waited for task {failed.task_id} ({failed.command}), which failed"
    return _outcome(entry, Status.FAILED, "DependencyFailed", f"{what}: {item.error}")


def file_missing_result(entry: Entry, reason: str) -> ResultItem:
    return _outcome(entry, Status.FAILED, "DependencyFailed", reason)


def expired_result(entry: Entry) -> ResultItem:
    return _outcome(entry, Status.FAILED, EXPIRED.kind, EXPIRED.error)


def rejected_result(entry: Entry, reason: str) -> ResultItem:
    return _outcome(entry, Status.FAILED, "TaskRejected", reason)


def budget_exceeded_result(entry: Entry, reason: str) -> ResultItem:
    return _outcome(entry, Status.FAILED, "BudgetExceeded", reason)


def _outcome(entry: Entry, status: Status, kind: str, reason: str) -> ResultItem:
    return ResultItem(
        uid=entry.uid,
        client=entry.client,
        job=entry.job,
        task_id=entry.task_id,
        command=entry.command,
        status=status,
        host=None,
        value=None,
        error=reason,
        kind=kind,
        tag=entry.tag,
        submitted_at=entry.submitted_at,
    )
