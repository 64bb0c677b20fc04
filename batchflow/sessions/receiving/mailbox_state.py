"""The state of a session's mailbox: which messages are held, delivered, completable or spilled. Pure.

A message is held until its last outcome was delivered to the user. Then it is completable, and after its
completion the blobs of its results are deleted. With a delivery record, the checkpoint that counts its
outcomes is saved before. Rules:

- Each outcome is delivered once. The first outcome of a task of this session counts. An outcome for an
  earlier holder of the mailbox is adopted if no holder delivered it. Anything else is a duplicate: its
  message is completed, and the record does not change.
- A message can be completed only through the attachment that it came by. When the mailbox was lost, messages
  that were not completed are redelivered. An outcome that is not delivered yet then gets the new message's
  acknowledgement. So does an outcome that the session gave itself, when an agent's message comes after all.
- A result by reference counts from when it was fetched, and one fetch of it runs at a time. Another message
  with it is a duplicate in the same attachment, and takes the first one's place in a later attachment.
  Another outcome of the task waits for the fetch; it counts only when there is nothing to fetch.
- Several messages may refer to one blob, which is deleted with the first of them. So a duplicate, completed
  at once, takes nothing from an outcome that this holder or a later one has still to fetch.
- Unread results spill to disk, oldest first, when a limit on messages, results or bytes is exceeded. Without
  a record a spilled result counts as delivered. With one it does not, because the file dies with the process.
- A message that cannot be decoded is dropped and reported.

Events in: the methods. Commands out: what they return, to be performed at once and in this order, before
`overflow` is called.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from batchflow.errors import LeaseLost, ProtocolError, ServiceError
from batchflow.model import Event
from batchflow.protocol import wire
from batchflow.protocol.dead_letters import is_resent
from batchflow.protocol.values.received import ValueReader
from batchflow.protocol.wire import EventItem, Reference, ResultItem
from batchflow.sessions.records.tracker import Acknowledgement, Entry, Spilled, Tracker
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from batchflow.ports.broker import Delivery
    from batchflow.sessions.records.checkpoint import DeliveryRecord

Attachment = TypeVar("Attachment")
"""What the shell attaches to the mailbox with, a link; compared by identity."""

_COMPACT_FROM: Final = 1024
_COMPACT_FROM_BYTES: Final = 1 << 20


@frozen
class UnreadLimits:
    """Limits of the results that are held unread; past any of them results spill to disk."""

    messages: int
    outcomes: int
    bytes: int


@dataclass(slots=True, eq=False)
class ResultMessage(Generic[Attachment]):
    """A message of results, and the blobs to delete after its completion."""

    delivery: Delivery
    attachment: Attachment
    """The attachment that the message came by."""
    size: int = 0
    """Bytes that are held of it, including results that were fetched."""
    blobs: list[str] = field(default_factory=list)


@frozen
class Resolved:
    """Command: wake the calls that wait for this task, which has its outcome."""

    entry: Entry
    outcome: ResultItem


@frozen
class Ended:
    """Command: let tasks go on that wait for this one of an earlier session, which has its outcome."""

    entry: Entry


@frozen
class Confirmed:
    """Command: note that an agent has sent an outcome of a task that had one already."""

    sequence: int


@frozen
class Fetch:
    """Command: fetch the blob of a result, then call `fetched` or `not_there`."""

    item: ResultItem
    reference: Reference


@frozen
class Tell:
    """Command: pass an event to the readers of events."""

    event: Event


@frozen
class Dropped:
    """Command: report a message that could not be decoded."""

    reason: ProtocolError


MailboxCommand = Resolved | Ended | Confirmed | Fetch | Tell | Dropped


@dataclass(frozen=True, slots=True, eq=False)
class _Consumption(Generic[Attachment]):
    """Records the delivery of an outcome, then acknowledges it.

    It holds the outcome's uid alone, so that an outcome on disk is not kept in memory as well.
    """

    state: MailboxState[Attachment]
    record: DeliveryRecord
    uid: str
    acknowledgement: Acknowledgement
    """The acknowledgement of the outcome's message."""

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
    """Outcomes of the same task that came after it, and must not overtake it."""


class MailboxState(Generic[Attachment]):
    """The state of one session's mailbox."""

    def __init__(
        self,
        incarnation: str,
        tracker: Tracker,
        limits: UnreadLimits,
        record: DeliveryRecord | None,
        on_completable: Callable[[], None],
        reader: ValueReader | None = None,
        was_cancelled: Callable[[str, int], bool] = lambda _incarnation, _sequence: False,
    ) -> None:
        """`record`: of a session that can be found again by its name. `on_completable` is called whenever a
        message became completable. `reader` opens values. `was_cancelled`: whether an earlier incarnation
        had cancelled this task.
        """
        self._reader = reader or ValueReader()
        self.attachment: Attachment | None = None
        """The current attachment; None while the mailbox is lost."""
        self.held = 0
        """Messages with an outcome that is not delivered."""
        self.held_bytes = 0
        self.completable: list[ResultMessage[Attachment]] = []
        """Messages whose outcomes were all delivered."""
        self.completable_bytes = 0
        """Bytes of these messages, which the broker's client holds until they are completed."""
        self.fresh: deque[Entry] = deque()
        """Outcomes in the order of arrival. Some behind the first may have been delivered meanwhile."""
        self.spilled: dict[str, Entry] = {}
        """Outcomes on disk, by uid. Until they are delivered their messages stay in the mailbox as well."""
        self.expecting_message: dict[str, Entry] = {}
        """Outcomes that the session gave itself, by uid, while an agent's message is still to come."""
        self.undelivered: dict[str, Entry] = {}
        """Outcomes, by uid, that were not delivered when the mailbox was lost."""
        self.fetching: dict[str, _Fetching[Attachment]] = {}
        """Results by reference that are being fetched, by uid."""
        self.is_waited_for: Callable[[Entry], bool] = lambda _: False
        """Whether tasks wait for this one. Then its value is fetched only when a call asks for it."""
        self.known: dict[str, Entry] = {}
        """Tasks of earlier holders that this one goes on with, and what these wait for, by uid."""
        self._retained: dict[str, Acknowledgement] = {}
        """Of messages that stay although their outcomes were delivered, by uid: tasks wait for these."""
        self._coming_again: set[str] = set()
        """Those of them that were lost with the mailbox, and are redelivered."""
        self._blobs: set[str] = set()
        """The blobs that held messages refer to."""
        self._incarnation = incarnation
        self._tracker = tracker
        self._limits = limits
        self._record = record
        self._on_completable = on_completable
        self._was_cancelled = was_cancelled
        self._compact_at = _COMPACT_FROM
        self._read_bytes = 0
        """Bytes of messages that were delivered since `fresh` was compacted."""

    # ---- the mailbox

    def lost(self) -> None:
        """Note the loss of the attachment: its messages cannot be completed, and are redelivered."""
        self.attachment = None
        self.held = 0
        self.held_bytes = 0
        self.take_completable()
        self._blobs.clear()
        fresh = {entry.uid: entry for entry in self.fresh if entry.acknowledgement is not None}
        self.undelivered = fresh | self.spilled
        self._coming_again = set(self._retained)

    def take_completable(self) -> list[ResultMessage[Attachment]]:
        """Remove and return the completable messages. With a record, save it before completing them."""
        completable, self.completable = self.completable, []
        self.completable_bytes = 0
        return completable

    def put_back(self, messages: list[ResultMessage[Attachment]]) -> None:
        """Return messages that may not be completed yet to their place."""
        self.completable = messages + self.completable
        self.completable_bytes += sum(message.size for message in messages)

    def not_completed(self, message: ResultMessage[Attachment], error: ServiceError) -> bool:
        """Return whether the completion of a message is tried again.

        Otherwise the message is redelivered as a duplicate, or disappears with the mailbox.
        """
        again = error.retryable and not isinstance(error, LeaseLost) and message.attachment is self.attachment
        if again:
            self.put_back([message])
        return again

    # ---- what comes

    def accept(self, message: ResultMessage[Attachment]) -> list[MailboxCommand]:
        """Take in a message that was received."""
        body = message.delivery.body
        message.size = len(body)
        message.delivery = replace(message.delivery, body=b"")  # the body is not read again
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
        """Make a result whose blob is gone a failure, unless a later holder may have deleted the blob.

        To be called only while this session is known to hold the mailbox, or after another attachment.
        """
        fetch = self.fetching.pop(item.uid)
        if fetch.message.attachment is not self.attachment:
            return []  # an outcome that was not delivered is redelivered
        return self._accept_outcomes([*fetch.later, (failure, fetch.message, fetch.acknowledgement)])

    def fetched(self, item: ResultItem, size: int) -> list[MailboxCommand]:
        """Take in a result that was fetched, with its `size` in bytes, or the failure that stands for it."""
        fetch = self.fetching.pop(item.uid)
        if fetch.message.attachment is self.attachment:
            fetch.message.size += size
            self.held_bytes += size
        return self._accept_outcomes([(item, fetch.message, fetch.acknowledgement), *fetch.later])

    def expect_message(self, entry: Entry) -> None:
        """Note that a task has an outcome of the session's own although an agent's is still to come."""
        if (record := self._record) is not None:
            entry.acknowledgement = Acknowledgement(lambda: record.consume(entry.uid), 1)
            self.expecting_message[entry.uid] = entry

    def retain(self, entry: Entry) -> None:
        """Keep the message of an outcome until `release`, also when the outcome was delivered."""
        acknowledgement = entry.acknowledgement
        if acknowledgement is not None and isinstance(acknowledgement.on_delivered, _Consumption):
            message: Acknowledgement = acknowledgement.on_delivered.acknowledgement
            message.remaining += 1
            self._retained[entry.uid] = message

    def release(self, uid: str) -> None:
        """Let a message go that was kept."""
        self._coming_again.discard(uid)
        if (message := self._retained.pop(uid, None)) is not None:
            message.deliver()

    def _read(
        self, item: wire.Item, message: ResultMessage[Attachment], acknowledgement: Acknowledgement
    ) -> list[MailboxCommand]:
        if isinstance(item, ResultItem) and isinstance(item.value, Reference) and item.value.data is not None:
            item = self._reader.opened(item, item.value.data)
        match item:
            case ResultItem(value=Reference() as reference):
                if reference.blob not in self._blobs:
                    self._blobs.add(reference.blob)
                    message.blobs.append(reference.blob)
                if item.uid not in self.fetching and self._is_passed(item.uid):
                    return self._accept_outcome(item, message, acknowledgement)
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
                acknowledgement.deliver()  # a task: it does not belong into a mailbox
                return []

    def _is_passed(self, uid: str) -> bool:
        """Return whether a result is for a task that has no outcome, and for which others wait."""
        incarnation, sequence = wire.split_uid(uid)
        own = incarnation == self._incarnation
        entry = self._tracker.find(sequence) if own else self.known.get(uid)
        if entry is None or entry.done or entry.on_done is not None:
            return False
        return self.is_waited_for(entry)

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
        expected = None if own else self.known.get(item.uid)
        entry = self._tracker.find(sequence if own else expected.sequence if expected is not None else -1)
        if not own and entry is not expected:
            entry = None  # another task of this session has that number
        if entry is not None and self._tracker.resolve(entry, item, self._recorded(item, acknowledgement)):
            if not own and self._record is not None:
                self._record.adopt(item.uid)
                entry.repeated = self._may_be_repeated(item, message)
            self._shown(entry, message)
            return [Resolved(entry, item)]
        if expected is not None and expected.done:
            expected = None
        current = message.attachment is self.attachment  # else its message is redelivered
        if current and (unread := self._unread(item.uid)) is not None:
            unread.acknowledgement = self._recorded(item, acknowledgement)
            if item.uid in self._coming_again:
                self._coming_again.discard(item.uid)
                self.retain(unread)
        elif not own and self._is_adopted(item.uid):
            self._adopt(item, sequence, message, acknowledgement, expected)
        elif current and (expected is not None or item.uid in self._coming_again):
            self._coming_again.discard(item.uid)
            self._retained[item.uid] = acknowledgement  # it was shown before, and is only passed on
            if expected is not None:
                expected.learn(item)
        else:
            acknowledgement.deliver()
        if expected is not None and expected.done:
            return [Ended(expected)]
        return [Confirmed(sequence)] if own else []

    def _recorded(self, item: ResultItem, acknowledgement: Acknowledgement) -> Acknowledgement:
        """Return an acknowledgement that records the delivery of the outcome first."""
        record = self._record
        return (
            acknowledgement
            if record is None
            else Acknowledgement(_Consumption(self, record, item.uid, acknowledgement), 1)
        )

    def _shown(self, entry: Entry, message: ResultMessage[Attachment]) -> None:
        """Note an outcome that can be read now. After a loss of the mailbox its message is redelivered."""
        self.fresh.append(entry)
        if message.attachment is not self.attachment:
            self.undelivered[entry.uid] = entry

    def _unread(self, uid: str) -> Entry | None:
        """Return the undelivered outcome that a redelivered message, or a late one, belongs to."""
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
            self._tracker.settle_owed()  # the checkpoint did not know of its delivery, the journal does
        return record.adopt(uid)

    def _adopt(
        self,
        item: ResultItem,
        sequence: int,
        message: ResultMessage[Attachment],
        acknowledgement: Acknowledgement,
        expected: Entry | None,
    ) -> None:
        """Record a result for a task that an earlier holder of this mailbox submitted.

        `expected`: the task, if others wait for it.
        """
        record = self._record
        entry = expected or Entry(
            sequence=sequence,
            index=sequence,
            uid=item.uid,
            task_id=item.task_id,
            command=item.command,
            client=item.client,
            job=item.job,
            submitted_at=item.submitted_at,
            tag=item.tag,
        )
        entry.learn(item)
        entry.repeated = self._may_be_repeated(item, message)
        owed = record is not None and record.is_owed(item.uid)
        self._tracker.adopt(entry, item, self._recorded(item, acknowledgement), owed=owed)
        self._shown(entry, message)

    def _may_be_repeated(self, item: ResultItem, message: ResultMessage[Attachment]) -> bool:
        """Return whether an earlier holder may have shown this outcome."""
        record, delivery = self._record, message.delivery
        # What did not run, such as a dead letter, may have had another outcome long before this one.
        undated = (
            item.uid in self.known  # this holder has sent it again
            or is_resent(delivery.message_id)
            or item.started_at is None
            or self._was_cancelled(*wire.split_uid(item.uid))
        )
        return record is not None and record.may_be_repeated(delivery.enqueued_at, undated=undated)

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
        """Drop delivered outcomes from `fresh`.

        Those behind an unread outcome are dropped rarely, because finding them takes a pass over all.
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
        """Yield the outcomes to put on disk. Each is passed to `spill` before the next one is taken."""
        limits = self._limits
        few = self.held <= limits.messages and len(self.fresh) <= limits.outcomes
        if few and self.held_bytes <= limits.bytes:
            return
        while self.fresh:
            entry = self.fresh.popleft()
            if entry.acknowledgement is not None and isinstance(entry.outcome, ResultItem):
                yield entry, entry.outcome

    def keep(self, entry: Entry) -> None:
        """Note that an outcome that `overflow` yielded last stays in memory."""
        self.fresh.appendleft(entry)

    def spill(self, entry: Entry, place: Spilled) -> None:
        """Note that an outcome is on disk."""
        entry.outcome = place
        if self._record is None:
            entry.deliver()
        else:
            self.spilled[entry.uid] = entry
