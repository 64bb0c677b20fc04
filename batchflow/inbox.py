"""A session's mailbox: results come in, whether or not anybody reads them."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import anyio
import orjson

from batchflow import wire
from batchflow.backoff import Backoff, opened
from batchflow.broker import Delivery, Mailbox
from batchflow.concurrency import task_group
from batchflow.control import queue_for
from batchflow.errors import (
    BrokerError,
    LeaseLost,
    MailboxInUse,
    ProtocolError,
    StorageError,
)
from batchflow.ledgerkeeper import SAVE_INTERVAL
from batchflow.model import Event, Status
from batchflow.outage import Outage
from batchflow.spill import SpillFile
from batchflow.tracker import Entry, Receipt
from batchflow.wire import EventItem, Reference, ResultItem

if TYPE_CHECKING:
    from batchflow.ledgerkeeper import LedgerKeeper
    from batchflow.session import Session

logger = logging.getLogger(__name__)

_RECEIVE_WAIT: Final = 30.0
"""Seconds of one wait for mail; a wait that ends without any only begins again."""
_MOST_UNSETTLED: Final = 500
"""Messages of results that are held because nobody has read them; past this their outcomes are spilled."""
_SETTLE_AT_ONCE: Final = 16
_SETTLE_WITHIN: Final = 0.2
"""Seconds that a message which was handed over may wait for others: alone, completing it costs what receiving
it did."""
_DUE_AT_ONCE: Final = 64
"""Messages that were handed over and wait, for others or for the ledger to be saved, at most."""
_SETTLE_SHARE: Final = 0.25
"""Of the time for closing: what a round of completions may take before it is left to the mailbox's next
opening."""
_LOCK_GRACE: Final = 30.0
"""Seconds beyond its duration that a dead client's lock may be held."""
_MOST_FETCHES: Final = 8
"""Results by reference that are fetched at once."""
_COMPACT_FROM: Final = 1024


@dataclass(slots=True, eq=False)
class _Letter:
    """A message of results, and what is to be removed with it."""

    delivery: Delivery
    mailbox: Mailbox
    """The opening of it that the message came by: only there it can be completed."""
    size: int
    """Bytes of what is held of it, with results that were fetched."""
    blobs: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class _Consumption:
    """What is due when an outcome of a session with a ledger was handed over.

    It knows the outcome by its uid alone: one that is on disk shall not be in memory, too.
    """

    inbox: Inbox
    ledger: LedgerKeeper
    uid: str
    receipt: Receipt
    """Of the message that it came by."""

    def __call__(self) -> None:
        self.ledger.consume(self.uid)
        self.inbox.consumed(self.uid)
        self.receipt.hand_over()


class Inbox:
    """Receives the session's mail, whether or not anybody reads it, and settles what was handed over.

    A message is completed when its last outcome was handed over. In a session that nobody can find again it
    is enough that it was spilled; else not, for the file dies with this process. The blobs of its results are
    deleted after that. When the mailbox was lost, what was not completed comes again: an outcome that is not
    handed over yet then gets the new message's receipt, and so does one that the session gave itself, when
    its mail comes after all. Anything else is a duplicate: it is completed, and says nothing of who has read
    what.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._id = wire.mailbox_id(session.job_name, session.name)
        self._mailbox: Mailbox | None = None
        self._ours_until = 0.0
        """Until when the mailbox is locked for us, by the monotonic clock."""
        self._due: list[_Letter] = []
        self._some_due = asyncio.Event()
        self._many_due = asyncio.Event()
        self._held = 0
        """Messages of which something was not handed over."""
        self._held_bytes = 0
        self._fresh: deque[Entry] = deque()
        """Outcomes in the order of arrival; may hold some that were handed over meanwhile."""
        self._compact_at = _COMPACT_FROM
        self._spilled: dict[str, Entry] = {}
        """Outcomes, by uid, that are on disk and, until somebody has them, also in the mailbox."""
        self._given: dict[str, Entry] = {}
        """Outcomes, by uid, that the session gave itself and mail is still to come of."""
        self._again: dict[str, Entry] = {}
        """Outcomes, by uid, that nobody had when the mailbox was lost."""
        self._fetching: dict[str, tuple[Receipt, _Letter]] = {}
        self._fetches = anyio.CapacityLimiter(_MOST_FETCHES)
        self._outage = Outage(session, "mail", "no mail could be received")
        self._away = Outage(session, "storage", "results could not be fetched from storage")
        self._spill = SpillFile()
        self._ledger = session._ledger

    @property
    def held(self) -> bool:
        """Whether the mailbox is ours at present."""
        return self._mailbox is not None

    async def open(self) -> None:
        """Raises `MailboxInUse`, naming the holder, when that one lives; a dead one's lock is waited for."""
        backoff = Backoff(0.5)
        clock = asyncio.get_running_loop().time
        until = clock() + self._session.pool._manifest.lock_duration + _LOCK_GRACE
        while True:
            try:
                self._mailbox = await self._open_once()
            except MailboxInUse as error:
                if (holder := await self._session._presence.living_holder()) is not None:
                    raise MailboxInUse(f"mailbox {self._id!r} is held by {holder}") from error
                if clock() > until:
                    raise MailboxInUse(
                        f"mailbox {self._id!r} is held by somebody who gives no sign of life"
                    ) from error
                self._session._warn(f"mailbox {self._id!r}: waiting for a dead client's lock to run out")
                await backoff.wait()
            else:
                return

    async def _open_once(self) -> Mailbox:
        queue = queue_for(self._session.pool._manifest.results_queues, self._id)
        broker = self._session.pool.client._services.broker
        began = time.monotonic()
        mailbox = await opened(lambda: broker.mailbox(queue, self._id))
        self._kept(began)
        return self._session._counter.mailbox(mailbox)

    def _kept(self, began: float) -> None:
        """A request that began then has locked the mailbox, or renewed its lock."""
        self._ours_until = began + self._session.pool._manifest.lock_duration

    def _check_ours(self) -> None:
        """Raises `LeaseLost` when this process has stood still for so long that somebody else may have the
        mailbox by now: what still lies in the socket may be his to show."""
        if time.monotonic() > self._ours_until:
            raise LeaseLost(f"nobody has renewed the lock of mailbox {self._id!r} in time")

    async def aclose(self) -> None:
        mailbox, self._mailbox = self._mailbox, None
        if mailbox is not None:
            await mailbox.aclose()

    async def run(self) -> None:
        """Receive for ever; a lost lock or link is opened again."""
        while self._ledger is not None and not self._ledger.loaded:
            async with self._reopening():
                assert self._mailbox is not None
                await self._ledger.load(self._mailbox)
        while True:
            async with self._reopening():
                assert self._mailbox is not None
                delivery = await self._mailbox.receive(_RECEIVE_WAIT)
                self._outage.worked()
                if delivery is not None:
                    self._check_ours()
                    self._accept(_Letter(delivery, self._mailbox, len(delivery.body)))

    async def keep(self) -> None:
        """Renew the mailbox's lock at a third of its time."""
        while True:
            await asyncio.sleep(self._session.pool._manifest.lock_duration / 3)
            if self._mailbox is None:
                continue
            began = time.monotonic()
            try:
                await self._mailbox.renew()
                self._kept(began)
            except BrokerError as error:
                # The receiving side meets the same trouble, and opens the mailbox again.
                logger.warning("mailbox_not_renewed", extra={"mailbox": self._id, "error": str(error)})

    async def settle(self) -> None:
        """Complete what was handed over, several messages at a time; with a ledger, once that was saved."""
        while True:
            if self._ledger is None:
                await self._some_due.wait()
            with anyio.move_on_after(_SETTLE_WITHIN if self._ledger is None else SAVE_INTERVAL):
                await self._many_due.wait()
            self._some_due.clear()
            self._many_due.clear()
            await self.flush_settlements()

    async def save_ledger(self) -> bool:
        """Whether what was handed over until now may be completed. A ledger that cannot be saved waits."""
        if self._ledger is None:
            return True
        if self._mailbox is None or not self._ledger.loaded:
            return False
        try:
            await self._ledger.save(self._mailbox)
        except BrokerError as error:
            # The receiving side meets the same trouble, and opens the mailbox again.
            logger.warning("ledger_not_saved", extra={"mailbox": self._id, "error": str(error)})
            return False
        return True

    async def flush_settlements(self) -> None:
        """Begun, a round is brought to its end: what was handed over must not come again."""
        due, self._due = self._due, []
        if not await self.save_ledger():
            self._due = due + self._due
            return
        while due:
            batch, due = due[:_SETTLE_AT_ONCE], due[_SETTLE_AT_ONCE:]
            with anyio.move_on_after(self._session.close_timeout * _SETTLE_SHARE, shield=True):
                async with task_group() as group:
                    for letter in batch:
                        group.start_soon(self._complete, letter)

    async def _complete(self, letter: _Letter) -> None:
        session = self._session
        try:
            await letter.mailbox.complete(letter.delivery)
        except BrokerError as error:
            logger.info("mail_not_completed", extra={"mailbox": self._id, "error": str(error)})
            if error.retryable and not isinstance(error, LeaseLost) and letter.mailbox is self._mailbox:
                self._due.append(letter)
                asyncio.get_running_loop().call_later(SAVE_INTERVAL, self._some_due.set)
            # Else it comes again, and is recognised as a duplicate, or goes with the mailbox.
            return
        for blob in letter.blobs:
            session._drop_later(session.pool._out, blob, "delete a result's blob")

    @asynccontextmanager
    async def _reopening(self) -> AsyncIterator[None]:
        try:
            yield
        except LeaseLost as error:
            self._session._warn(f"the mailbox was lost and is opened again: {error}")
            await self._reopen()
        except BrokerError as error:
            if not error.retryable:
                raise
            self._session._warn(f"no mail at present, trying again: {error}")
            self._outage.failed(error)
            await asyncio.sleep(random.uniform(0.1, 1.0))

    async def _reopen(self) -> None:
        """Raises `MailboxInUse` when somebody else has taken it over, and lives or had it meanwhile."""
        self._forget_letters()
        await self.aclose()
        backoff = Backoff()
        while not self.held:
            try:
                await self._win_back()
            except MailboxInUse as error:
                if not error.retryable:
                    raise
                if (holder := await self._other_holder()) is not None:
                    raise MailboxInUse(f"mailbox {self._id!r} was taken over by {holder}") from error
                self._outage.failed(error)
                await backoff.wait()
            except BrokerError as error:
                if not error.retryable:
                    raise
                self._outage.failed(error)
                await backoff.wait()
        self._outage.worked()

    async def _win_back(self) -> None:
        """Ours is only what nobody had meanwhile: a ledger of somebody else's is not to be written over."""
        mailbox = await self._open_once()
        try:
            if self._ledger is not None:
                await self._ledger.check(mailbox)
        except BaseException:
            await mailbox.aclose()
            raise
        self._mailbox = mailbox

    async def _other_holder(self) -> str | None:
        try:
            return await self._session._presence.living_holder()
        except StorageError as error:
            logger.warning("presence_not_read", extra={"mailbox": self._id, "error": str(error)})
            return None

    def _forget_letters(self) -> None:
        """None of them can be completed any more: they will come again."""
        self._held = 0
        self._held_bytes = 0
        self._due.clear()
        fresh = {entry.uid: entry for entry in self._fresh if entry.receipt is not None}
        self._again = fresh | self._spilled

    def _accept(self, letter: _Letter) -> None:
        try:
            items = wire.decode(letter.delivery.body)
        except ProtocolError as error:
            self._session._warn(f"a message in the mailbox was dropped: {error}")
            self._complete_later(letter)
            return
        self._held += 1
        self._held_bytes += letter.size
        receipt = Receipt(lambda: self._handed_over(letter), len(items))
        letter.delivery = replace(letter.delivery, body=b"")  # nobody reads it again
        for item in items:
            match item:
                case ResultItem(value=Reference() as reference):
                    letter.blobs.append(reference.blob)
                    self._bring(item, reference, receipt, letter)
                case ResultItem():
                    self._deliver(item, receipt, letter.delivery.enqueued_at)
                case EventItem():
                    event = Event(item.kind, item.message, item.at, item.task_id, item.data)
                    self._session._tell(event)
                    receipt.hand_over()
                case _:
                    receipt.hand_over()  # a task: it has no business here
        self._session._changed()
        self._spill_over()

    def _accounted(self, item: ResultItem, receipt: Receipt) -> Receipt:
        """A receipt that enters the outcome's hand-over into the ledger first."""
        ledger = self._ledger
        return receipt if ledger is None else Receipt(_Consumption(self, ledger, item.uid, receipt), 1)

    def consumed(self, uid: str) -> None:
        """Somebody has this outcome."""
        self._spilled.pop(uid, None)

    def _deliver(self, item: ResultItem, receipt: Receipt, enqueued_at: float) -> Entry | None:
        """Returns the task, if this is its outcome."""
        session = self._session
        incarnation, sequence = wire.split_uid(item.uid)
        entry = session._tracker.find(sequence) if incarnation == session.incarnation else None
        if entry is not None and session._resolve(entry, item, self._accounted(item, receipt)):
            self._learn(item)
            self._fresh.append(entry)
            return entry
        if (unread := self._unread(item.uid)) is not None:
            unread.receipt = self._accounted(item, receipt)
        elif incarnation != session.incarnation and self._ledger is not None and self._ledger.adopt(item.uid):
            until = session._presence.predecessor_until
            return self._adopt(item, sequence, receipt, until is not None and enqueued_at <= until)
        else:
            receipt.hand_over()
        if incarnation == session.incarnation:
            session._cancellations.confirmed(sequence)
        return None

    def give(self, entry: Entry) -> None:
        """It has an outcome of the session's own, and mail is still to come of it."""
        if (ledger := self._ledger) is not None:
            entry.receipt = Receipt(lambda: ledger.consume(entry.uid), 1)
            self._given[entry.uid] = entry

    def _unread(self, uid: str) -> Entry | None:
        """The outcome that this mail belongs to, when nobody has it yet although it did not come by this."""
        if (given := self._given.pop(uid, None)) is not None:
            self._fresh.append(given)
        entry = self._again.pop(uid, given)
        return entry if entry is not None and entry.receipt is not None else None

    def _learn(self, item: ResultItem) -> None:
        if item.started_at is not None and item.finished_at is not None:
            self._session._policy.seen(item.command, item.finished_at - item.started_at)

    def _adopt(self, item: ResultItem, sequence: int, receipt: Receipt, repeated: bool) -> Entry:
        """Mail for an earlier holder of this mailbox."""
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
            repeated=repeated,
        )
        owed = self._ledger is not None and self._ledger.is_owed(item.uid)
        self._session._tracker.adopt(entry, item, self._accounted(item, receipt), owed=owed)
        self._fresh.append(entry)
        return entry

    def _bring(self, item: ResultItem, reference: Reference, receipt: Receipt, letter: _Letter) -> None:
        """Fetch a result that travels by reference; one that is under way is a duplicate or came again."""
        known = self._fetching.get(item.uid)
        if known is not None and known[1].mailbox is letter.mailbox:
            receipt.hand_over()
            return
        self._fetching[item.uid] = (receipt, letter)
        if known is None:
            self._session._background.start(
                self._fetch(item, reference), f"fetch the result of {item.task_id}"
            )

    async def _fetch(self, item: ResultItem, reference: Reference) -> None:
        async with self._fetches:
            item = await self._fetched(item, reference)
        receipt, letter = self._fetching.pop(item.uid)
        if letter.mailbox is self._mailbox:
            letter.size += reference.size
            self._held_bytes += reference.size
        entry = self._deliver(item, receipt, letter.delivery.enqueued_at)
        if entry is not None and letter.mailbox is not self._mailbox:
            self._again[item.uid] = entry
        self._session._changed()
        self._spill_over()

    async def _fetched(self, item: ResultItem, reference: Reference) -> ResultItem:
        backoff = Backoff()
        while True:
            try:
                blob = await self._session.pool._out.get(reference.blob)
                self._away.worked()
                return replace(item, value=orjson.loads(blob.data))
            except StorageError as error:
                if not error.retryable:
                    return _unreadable(item, f"its result cannot be fetched: {error}")
                self._away.failed(error)
                await backoff.wait()
            except orjson.JSONDecodeError as error:
                return _unreadable(item, f"its result is not JSON: {error}")

    def _handed_over(self, letter: _Letter) -> None:
        if letter.mailbox is self._mailbox:
            self._held -= 1
            self._held_bytes -= letter.size
            self._complete_later(letter)

    def _complete_later(self, letter: _Letter) -> None:
        self._due.append(letter)
        self._some_due.set()
        if len(self._due) >= _DUE_AT_ONCE:
            self._many_due.set()

    def _spill_over(self) -> None:
        """Put outcomes that nobody reads on disk, the oldest first."""
        if len(self._fresh) >= self._compact_at:
            self._fresh = deque(entry for entry in self._fresh if entry.receipt is not None)
            self._compact_at = max(_COMPACT_FROM, 2 * len(self._fresh))
        settings = self._session._settings
        few = self._held <= _MOST_UNSETTLED and len(self._fresh) <= settings.unclaimed
        if few and self._held_bytes <= settings.unclaimed_bytes:
            return
        while self._fresh:
            entry = self._fresh.popleft()
            if entry.receipt is not None and isinstance(entry.outcome, ResultItem):
                entry.outcome = self._spill.write(entry.outcome)
                if self._ledger is None:
                    entry.hand_over()
                else:
                    self._spilled[entry.uid] = entry


def _unreadable(item: ResultItem, why: str) -> ResultItem:
    error = f"the task {item.status.value}, but {why}"
    return replace(item, status=Status.FAILED, value=None, error=error, kind="TaskFailed")
