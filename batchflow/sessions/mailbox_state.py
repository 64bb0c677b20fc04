"""What a session knows of its mail: what to show, to keep, to settle, to adopt and to spill.

A message is held until its last outcome was handed over, then it is due: to be completed, and the blobs of
its results to be deleted after that. With an account it may be completed only when what was handed over was
saved before. Rules:

- Each outcome is shown once. One for a task of ours is its outcome if it is the first; one for an earlier
  holder of the mailbox is adopted if nobody was shown it. Anything else is a duplicate: its message is
  completed, and it says nothing of who has read what.
- A message can be completed only by the opening of the mailbox that it came by. When the mailbox was lost,
  what was not completed comes again: an outcome that is not handed over yet then gets the new message's
  receipt, and so does one that the session gave itself, when its mail comes after all.
- A result that travels by reference counts as come when it was fetched. It is fetched once at a time: one
  more of the same opening is a duplicate, one of a later opening takes the first one's place. Another outcome
  of its task that comes meanwhile waits, and is a duplicate; it counts only where there is nothing to fetch.
- Several messages may refer to one blob. It goes with the first of them: a duplicate, completed at once,
  takes nothing away from an outcome that is still to be fetched, by this holder or by a later one.
- What nobody reads is put on disk, the oldest first, past so many messages, outcomes or bytes. In a session
  that nobody can find again this is as good as handed over; with an account not, for the file dies with this
  process.
- What cannot be read is dropped, and told.

Events in: the methods. Commands out: what they return, to be performed at once and in this order, before
`overflow` is asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from batchflow.errors import LeaseLost, ProtocolError, ServiceError
from batchflow.model import Event
from batchflow.protocol import wire
from batchflow.protocol.wire import EventItem, Reference, ResultItem
from batchflow.sessions.tracker import Acknowledgement, Entry, Spilled, Tracker
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from batchflow.ports.broker import Delivery
    from batchflow.sessions.checkpoint import DeliveryRecord

Attachment = TypeVar("Attachment")
"""What an opening of the mailbox is known by; compared by identity."""

_COMPACT_FROM: Final = 1024
_COMPACT_FROM_BYTES: Final = 1 << 20


@frozen
class UnreadLimits:
    """Of what is held although nobody reads it."""

    messages: int
    outcomes: int
    bytes: int


@dataclass(slots=True, eq=False)
class ResultMessage(Generic[Attachment]):
    """A message of results, and what is to be removed with it."""

    delivery: Delivery
    attachment: Attachment
    """The one that the message came by."""
    size: int = 0
    """Bytes of what is held of it, with results that were fetched."""
    blobs: list[str] = field(default_factory=list)


@frozen
class Resolved:
    """Tell whoever waits for this task: it has its outcome."""

    entry: Entry
    outcome: ResultItem


@frozen
class Confirmed:
    """Mail has come for a task that had an outcome: an agent knows of it."""

    sequence: int


@frozen
class Fetch:
    """Get what a result refers to, then say `fetched`."""

    item: ResultItem
    reference: Reference


@frozen
class Tell:
    """To whoever listens to events."""

    event: Event


@frozen
class Dropped:
    """A message could not be read."""

    reason: ProtocolError


MailboxCommand = Resolved | Confirmed | Fetch | Tell | Dropped


@dataclass(frozen=True, slots=True, eq=False)
class _Consumption(Generic[Attachment]):
    """What is due when an outcome of a session with an account was handed over.

    It knows the outcome by its uid alone: one that is on disk shall not be in memory, too.
    """

    state: MailboxState[Attachment]
    record: DeliveryRecord
    uid: str
    acknowledgement: Acknowledgement
    """Of the message that it came by."""

    def __call__(self) -> None:
        self.record.consume(self.uid)
        self.state.spilled.pop(self.uid, None)
        self.acknowledgement.deliver()


@dataclass(slots=True)
class _Fetching(Generic[Attachment]):
    """A result by reference that is being fetched."""

    acknowledgement: Acknowledgement
    message: ResultMessage[Attachment]
    later: list[tuple[ResultItem, ResultMessage[Attachment], Acknowledgement]] = field(default_factory=list)
    """Outcomes of the same task that came after it: they do not overtake it."""


class MailboxState(Generic[Attachment]):
    """Of one session."""

    def __init__(
        self,
        incarnation: str,
        tracker: Tracker,
        limits: UnreadLimits,
        record: DeliveryRecord | None,
        on_completable: Callable[[], None],
    ) -> None:
        """`account`: of a session that can be found again. `on_due` is called when a message is due."""
        self.attachment: Attachment | None = None
        """None while the mailbox is not ours."""
        self.predecessor_until: float | None = None
        """Until when an earlier holder that was not closed may have lived, by the broker's clock."""
        self.held = 0
        """Messages of which something was not handed over."""
        self.held_bytes = 0
        self.completable: list[ResultMessage[Attachment]] = []
        """Messages that were handed over."""
        self.completable_bytes = 0
        """Of these messages: the broker's client holds them until they are completed."""
        self.fresh: deque[Entry] = deque()
        """Outcomes in the order of arrival; may hold some that were handed over meanwhile, behind others."""
        self.spilled: dict[str, Entry] = {}
        """Outcomes, by uid, that are on disk and, until somebody has them, also in the mailbox."""
        self.expecting_message: dict[str, Entry] = {}
        """Outcomes, by uid, that the session gave itself and mail is still to come of."""
        self.undelivered: dict[str, Entry] = {}
        """Outcomes, by uid, that nobody had when the mailbox was lost."""
        self.fetching: dict[str, _Fetching[Attachment]] = {}
        """By uid."""
        self._blobs: set[str] = set()
        """Those that messages that are held refer to."""
        self._incarnation = incarnation
        self._tracker = tracker
        self._limits = limits
        self._record = record
        self._on_completable = on_completable
        self._compact_at = _COMPACT_FROM
        self._read_bytes = 0
        """Of messages that were handed over since `fresh` was last rid of what they brought."""

    # ---- the mailbox

    def lost(self) -> None:
        """No message of this opening can be completed any more: all of them will come again."""
        self.attachment = None
        self.held = 0
        self.held_bytes = 0
        self.take_completable()
        self._blobs.clear()
        fresh = {entry.uid: entry for entry in self.fresh if entry.acknowledgement is not None}
        self.undelivered = fresh | self.spilled

    def take_completable(self) -> list[ResultMessage[Attachment]]:
        """To be completed: with an account, when one that was taken after this was saved."""
        completable, self.completable = self.completable, []
        self.completable_bytes = 0
        return completable

    def put_back(self, messages: list[ResultMessage[Attachment]]) -> None:
        """They are not to be completed yet."""
        self.completable = messages + self.completable
        self.completable_bytes += sum(message.size for message in messages)

    def not_completed(self, message: ResultMessage[Attachment], error: ServiceError) -> bool:
        """Whether it is to be tried again. Else it comes again, a duplicate, or goes with the mailbox."""
        again = error.retryable and not isinstance(error, LeaseLost) and message.attachment is self.attachment
        if again:
            self.put_back([message])
        return again

    # ---- what comes

    def accept(self, message: ResultMessage[Attachment]) -> list[MailboxCommand]:
        """A message has come."""
        body = message.delivery.body
        message.size = len(body)
        message.delivery = replace(message.delivery, body=b"")  # nobody reads it again
        try:
            items = wire.decode(body)
        except ProtocolError as error:
            self._complete_later(message)
            return [Dropped(error)]
        self.held += 1
        self.held_bytes += message.size
        acknowledgement = Acknowledgement(lambda: self._delivered(message), len(items))
        return [command for item in items for command in self._read(item, message, acknowledgement)]

    def not_there(self, item: ResultItem, failure: ResultItem) -> list[MailboxCommand]:
        """What a result refers to is gone: it is a failure, unless a later holder may have removed it.

        To be said only while the mailbox is known to be ours, or after another opening of it.
        """
        fetch = self.fetching.pop(item.uid)
        if fetch.message.attachment is not self.attachment:
            return []  # where nobody was shown it, it comes again
        return self._accept_outcomes([*fetch.later, (failure, fetch.message, fetch.acknowledgement)])

    def fetched(self, item: ResultItem, size: int) -> list[MailboxCommand]:
        """A result is there whole, with so many bytes more; or it never will be, and is a failure."""
        fetch = self.fetching.pop(item.uid)
        if fetch.message.attachment is self.attachment:
            fetch.message.size += size
            self.held_bytes += size
        return self._accept_outcomes([(item, fetch.message, fetch.acknowledgement), *fetch.later])

    def expect_message(self, entry: Entry) -> None:
        """It has an outcome of the session's own, and mail is still to come of it."""
        if (record := self._record) is not None:
            entry.acknowledgement = Acknowledgement(lambda: record.consume(entry.uid), 1)
            self.expecting_message[entry.uid] = entry

    def _read(
        self, item: wire.Item, message: ResultMessage[Attachment], acknowledgement: Acknowledgement
    ) -> list[MailboxCommand]:
        match item:
            case ResultItem(value=Reference() as reference):
                if reference.blob not in self._blobs:
                    self._blobs.add(reference.blob)
                    message.blobs.append(reference.blob)
                return self._request_fetch(item, reference, message, acknowledgement)
            case ResultItem():
                fetch = self.fetching.get(item.uid)
                if fetch is not None and fetch.message.attachment is message.attachment:
                    fetch.later.append((item, message, acknowledgement))
                    return []
                return self._accept_outcome(item, message, acknowledgement)
            case EventItem():
                acknowledgement.deliver()
                return [Tell(Event(item.kind, item.message, item.at, item.task_id, item.data))]
            case _:
                acknowledgement.deliver()  # a task: it has no business here
                return []

    def _request_fetch(
        self,
        item: ResultItem,
        reference: Reference,
        message: ResultMessage[Attachment],
        acknowledgement: Acknowledgement,
    ) -> list[MailboxCommand]:
        known = self.fetching.get(item.uid)
        if known is not None and known.message.attachment is message.attachment:
            acknowledgement.deliver()
            return []
        self.fetching[item.uid] = _Fetching(acknowledgement, message)
        return [Fetch(item, reference)] if known is None else []

    def _accept_outcomes(
        self, line: list[tuple[ResultItem, ResultMessage[Attachment], Acknowledgement]]
    ) -> list[MailboxCommand]:
        return [command for each in line for command in self._accept_outcome(*each)]

    def _accept_outcome(
        self, item: ResultItem, message: ResultMessage[Attachment], acknowledgement: Acknowledgement
    ) -> list[MailboxCommand]:
        incarnation, sequence = wire.split_uid(item.uid)
        own = incarnation == self._incarnation
        entry = self._tracker.find(sequence) if own else None
        if entry is not None and self._tracker.resolve(entry, item, self._recorded(item, acknowledgement)):
            self._shown(entry, message)
            return [Resolved(entry, item)]
        current = message.attachment is self.attachment  # else it was fetched for a message that comes again
        if current and (unread := self._unread(item.uid)) is not None:
            unread.acknowledgement = self._recorded(item, acknowledgement)
        elif not own and self._is_adopted(item.uid):
            self._adopt(item, sequence, message, acknowledgement)
        else:
            acknowledgement.deliver()
        return [Confirmed(sequence)] if own else []

    def _recorded(self, item: ResultItem, acknowledgement: Acknowledgement) -> Acknowledgement:
        """A receipt that enters the outcome's hand-over into the account first."""
        record = self._record
        return (
            acknowledgement
            if record is None
            else Acknowledgement(_Consumption(self, record, item.uid, acknowledgement), 1)
        )

    def _shown(self, entry: Entry, message: ResultMessage[Attachment]) -> None:
        """Somebody may read it from now on; if its mailbox was lost meanwhile, its mail comes again."""
        self.fresh.append(entry)
        if message.attachment is not self.attachment:
            self.undelivered[entry.uid] = entry

    def _unread(self, uid: str) -> Entry | None:
        """The outcome that this mail belongs to, when nobody has it yet although it did not come by this."""
        if (given := self.expecting_message.pop(uid, None)) is not None:
            self.fresh.append(given)
        entry = self.undelivered.pop(uid, given)
        return entry if entry is not None and entry.acknowledgement is not None else None

    def _is_adopted(self, uid: str) -> bool:
        record = self._record
        if record is None:
            return False
        owed = record.is_owed(uid)
        if owed and record.is_consumed(uid):
            self._tracker.settle_owed()  # the ledger did not know, the journal does
        return record.adopt(uid)

    def _adopt(
        self,
        item: ResultItem,
        sequence: int,
        message: ResultMessage[Attachment],
        acknowledgement: Acknowledgement,
    ) -> None:
        """Mail for an earlier holder of this mailbox."""
        until = self.predecessor_until
        entry = Entry(
            sequence=sequence,
            index=sequence,
            uid=item.uid,
            task_id=item.task_id,
            command=item.command,
            client=item.client,
            job=item.job,
            submitted_at=item.submitted_at,
            tag=item.tag,
            repeated=until is not None and message.delivery.enqueued_at <= until,
        )
        owed = self._record is not None and self._record.is_owed(item.uid)
        self._tracker.adopt(entry, item, self._recorded(item, acknowledgement), owed=owed)
        self._shown(entry, message)

    # ---- what goes

    def _delivered(self, message: ResultMessage[Attachment]) -> None:
        if message.attachment is self.attachment:
            self.held -= 1
            self.held_bytes -= message.size
            self._blobs.difference_update(message.blobs)
            self._complete_later(message)
        self._read_bytes += message.size
        self._forget_read()

    def _forget_read(self) -> None:
        """Hold nothing of what was handed over.

        What is behind an outcome that nobody reads waits, for to look for it takes a turn at all of them.
        """
        while self.fresh and self.fresh[0].acknowledgement is None:
            self.fresh.popleft()
        if len(self.fresh) >= self._compact_at or self._read_bytes >= _COMPACT_FROM_BYTES:
            self.fresh = deque(entry for entry in self.fresh if entry.acknowledgement is not None)
            self._compact_at = max(_COMPACT_FROM, 2 * len(self.fresh))
            self._read_bytes = 0

    def _complete_later(self, message: ResultMessage[Attachment]) -> None:
        self.completable.append(message)
        self.completable_bytes += message.size
        self._on_completable()

    def overflow(self) -> Iterator[tuple[Entry, ResultItem]]:
        """What is to be put on disk; each is to be said to `spill` before the next one is asked for."""
        limits = self._limits
        few = self.held <= limits.messages and len(self.fresh) <= limits.outcomes
        if few and self.held_bytes <= limits.bytes:
            return
        while self.fresh:
            entry = self.fresh.popleft()
            if entry.acknowledgement is not None and isinstance(entry.outcome, ResultItem):
                yield entry, entry.outcome

    def spill(self, entry: Entry, place: Spilled) -> None:
        """An outcome is on disk."""
        entry.outcome = place
        if self._record is None:
            entry.deliver()
        else:
            self.spilled[entry.uid] = entry
