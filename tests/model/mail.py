"""A session's mailbox in the model: the real tracker, receipts and ledger, with a thin shell around them.

The shell's rules are those of the real one: a message of results is completed only when all in it was handed
over and a ledger that says so is saved; what was lost with the mailbox comes again; duplicates are known by
uid; a result by reference is fetched before it counts as come; its blob goes after its message.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import orjson

from batchflow import wire
from batchflow.errors import BlobNotFound, LeaseLost, MailboxInUse, ServiceError
from batchflow.ledger import Ledger, Page
from batchflow.local import queues as core
from batchflow.model import Status
from batchflow.tracker import Entry, Receipt
from batchflow.wire import Reference, ResultItem
from tests.model.world import Backoff, Call, Steps, Wait, sleep

if TYPE_CHECKING:
    from tests.model.sessions import Session

_SAVE_EVERY: Final = 1.0
_PREFETCH: Final = 10
_SIGNS_OF_LIFE: Final = 3


class TakenOver(Exception):
    """Somebody else holds the mailbox, and lives."""


class Holder:
    """What the broker knows a link by."""


@dataclass(slots=True, eq=False)
class _Letter:
    """A message of results, and what is to be removed with it."""

    message: core.Message
    holder: Holder
    """The opening of the mailbox that it came by."""
    blobs: list[str] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Spilled:
    """An outcome that lies in a file: it dies with its session."""

    outcome: ResultItem

    def read(self) -> ResultItem:
        return self.outcome


class Mail:
    """What comes in, until it was handed over and settled."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._cloud = session.world.cloud
        self._id = session.mailbox
        self.holder: Holder | None = None
        """None while the mailbox is not ours, or not known to be."""
        self._opening: Holder | None = None
        self.ledger = Ledger(pages={session.name: Page()})
        self.loaded = False
        self._dirty = False
        self._due: list[_Letter] = []
        self._held = 0
        self._fresh: deque[Entry] = deque()
        self._spilled: dict[str, Entry] = {}
        self._given: dict[str, Entry] = {}
        self._again: dict[str, Entry] = {}
        self._fetching: dict[str, tuple[Receipt, _Letter]] = {}

    @property
    def quiet(self) -> bool:
        """Whether it owes nobody anything."""
        return self.loaded and not (self._due or self._dirty or self._fetching or self._behind)

    @property
    def owed(self) -> int:
        """How many outcomes a later holder would wait for."""
        return sum(page.owed for page in self.ledger.pages.values())

    @property
    def _behind(self) -> bool:
        """Whether the ledger does not know yet what was accepted."""
        return self.ledger.pages[self._session.name].submitted != self._session.passed

    # Opening

    def open(self) -> Steps:
        """Raises `TakenOver` when a living client has it."""
        backoff = Backoff(0.5)
        while self.holder is None:
            yield from self._open_once(backoff)

    def _open_once(self, backoff: Backoff) -> Steps:
        """One try; where it fails, who else may live, and a wait."""
        holder = self._opening = Holder()
        try:
            yield Call(lambda: self._lock(holder), receives=True)
            yield from self._check(holder)
        except MailboxInUse:
            yield from self._look_who_lives()
            yield backoff.wait(self._session)
        except ServiceError:
            self._abandon(holder)
            yield backoff.wait(self._session)
        else:
            self.holder, self._opening = holder, None

    def _check(self, holder: Holder) -> Steps:
        """Ours is only what nobody had meanwhile."""
        if self.loaded:
            state = yield Call(partial(self._read_state, holder))
            if Ledger.decode(state).epoch > self.ledger.epoch:
                self._abandon(holder)
                raise TakenOver("somebody meanwhile")

    def _lock(self, holder: Holder) -> None:
        self._need(holder)
        self._cloud.results.accept_session(self._id, holder, self._session.now)

    def _need(self, holder: Holder | None) -> Holder:
        """The link is there."""
        if holder is None or holder not in (self.holder, self._opening):
            raise core.SessionLockLost("the link is gone")
        return holder

    def _abandon(self, holder: Holder) -> None:
        if holder is self._opening:
            self._opening = None
            self._session.world.forget_holder(self._id, holder)

    def let_go(self) -> None:
        """The links are gone."""
        holders = [holder for holder in (self.holder, self._opening) if holder is not None]
        self.holder = self._opening = None
        for holder in holders:
            self._session.world.forget_holder(self._id, holder)

    def _look_who_lives(self) -> Steps:
        session = self._session
        try:
            presence, _ = yield Call(lambda: self._cloud.blobs.get(session.presence_blob))
        except ServiceError:
            return
        if presence.nonce != session.name:
            age = session.now - presence.beat_at
            if age < presence.interval * _SIGNS_OF_LIFE:
                raise TakenOver(presence.nonce)

    def _reopen(self) -> Steps:
        """Raises `TakenOver`, also when somebody had it meanwhile and is gone again."""
        self._held = 0
        self._due.clear()
        fresh = {entry.uid: entry for entry in self._fresh if entry.receipt is not None}
        self._again = fresh | self._spilled
        self.let_go()
        yield from self.open()

    def load(self) -> Steps:
        """What earlier holders have read, and are owed."""
        while not self.loaded:
            try:
                ledger = Ledger.decode((yield Call(lambda: self._read_state(self.holder))))
                page = self.ledger.pages[self._session.name]
                if ledger.was_replaced(self._session.name, page):
                    raise TakenOver("somebody meanwhile")
                owed = ledger.open(self._session.name, page)
                yield Call(partial(self._write_state, ledger.encode()))
            except LeaseLost:
                yield from self._reopen()
            except ServiceError:
                yield sleep(self._session, 0.5)
            else:
                self.ledger, self.loaded = ledger, True
                self._session.tracker.expect(owed)

    def _read_state(self, holder: Holder | None) -> bytes | None:
        return self._cloud.results.session_state(self._id, self._need(holder), self._session.now)

    def _write_state(self, state: bytes) -> None:
        holder, now = self._need(self.holder), self._session.now
        self._cloud.results.set_session_state(self._id, holder, state, now)

    # Services

    def receive(self) -> Steps:
        yield from self.load()
        while True:
            yield Wait(self._may_receive, signal=self._cloud.mail[self._id])
            try:
                found = yield Call(self._fetch_mail, receives=True)
            except LeaseLost:
                yield from self._reopen()
            except ServiceError:
                yield sleep(self._session, 0.5)
            else:
                holder = self.holder
                for message in found if holder is not None else ():
                    self._accept(_Letter(message, holder))

    def _may_receive(self) -> bool:
        results = self._cloud.results
        if self.holder is None or results.has_ready(self._id):
            return True
        return results.session_holder(self._id, self._session.now) is not self.holder

    def _fetch_mail(self) -> list[core.Message]:
        return self._cloud.results.receive(
            _PREFETCH, self._session.now, self._need(self.holder), session_id=self._id
        )

    def keep(self) -> Steps:
        """Renew the mailbox's lock."""
        while True:
            yield sleep(self._session, self._cloud.lock / 3)
            try:
                yield Call(self._renew)
            except ServiceError:
                continue

    def _renew(self) -> None:
        self._cloud.results.renew_session(self._id, self._need(self.holder), self._session.now)

    def settle(self) -> Steps:
        """Save the ledger, then complete what it covers."""
        while True:
            yield Wait(lambda: self.loaded and bool(self._due or self._dirty or self._behind))
            yield sleep(self._session, _SAVE_EVERY)
            yield from self.settle_once()

    def settle_once(self) -> Steps:
        """One round; what fails is left to the next one."""
        batch, self._due = self._due, []
        if not (yield from self.save()):
            self._due = batch + self._due
            return
        for letter in batch:
            yield from self._complete(letter)

    def save(self) -> Steps:
        """Whether what was handed over until now may be completed."""
        if not self.loaded or self.holder is None:
            return False
        page = self.ledger.pages[self._session.name]
        if not self._dirty and not self._behind:
            return True
        page.submitted = self._session.passed
        state = self.ledger.encode()
        self._dirty = saved = False
        try:
            yield Call(lambda: self._write_state(state))
            saved = True
        except ServiceError:
            pass
        finally:
            self._dirty |= not saved
        return saved

    def _complete(self, letter: _Letter) -> Steps:
        try:
            yield Call(lambda: self._complete_held(letter))
        except LeaseLost:
            return
        except ServiceError:
            if letter.holder is self.holder:
                self._due.append(letter)
            return
        for blob in letter.blobs:
            self._session.spawn(self._session.drop_blob(blob))

    def _complete_held(self, letter: _Letter) -> None:
        if letter.holder is not self._need(self.holder):
            raise core.LockLost("it came by another opening of the mailbox")
        self._cloud.results.complete(letter.message.lock_token, self._session.now)

    # What comes

    def _accept(self, letter: _Letter) -> None:
        items = wire.decode(letter.message.body)
        self._held += 1
        receipt = Receipt(lambda: self._handed_over(letter), len(items))
        for item in items:
            assert isinstance(item, ResultItem)
            if isinstance(item.value, Reference):
                letter.blobs.append(item.value.blob)
                self._bring(item, item.value, receipt, letter)
            else:
                self._deliver(item, receipt)
        self._spill_over()

    def _handed_over(self, letter: _Letter) -> None:
        if letter.holder is self.holder:
            self._held -= 1
            self._due.append(letter)

    def _accounted(self, item: ResultItem, receipt: Receipt) -> Receipt:
        """A receipt that enters the outcome's hand-over into the ledger first."""

        def due() -> None:
            self.consume(item.uid)
            self._spilled.pop(item.uid, None)
            receipt.hand_over()

        return Receipt(due, 1)

    def consume(self, uid: str) -> None:
        if self._session.journal is not None:
            self._session.journal.add(uid)
        self._dirty |= self.ledger.consume(*wire.split_uid(uid))

    def _deliver(self, item: ResultItem, receipt: Receipt) -> Entry | None:
        """The task, if this is its outcome."""
        session = self._session
        incarnation, sequence = wire.split_uid(item.uid)
        entry = session.tracker.find(sequence) if incarnation == session.name else None
        if entry is not None and session.resolve(entry, item, self._accounted(item, receipt)):
            self._fresh.append(entry)
            return entry
        if (unread := self._unread(item.uid)) is not None:
            unread.receipt = self._accounted(item, receipt)
        elif incarnation != session.name and self._is_adopted(item.uid):
            return self._adopt(item, sequence, receipt)
        else:
            receipt.hand_over()
        if incarnation == session.name:
            session.cancelling.confirmed(sequence)
        return None

    def give(self, entry: Entry) -> None:
        """It has an outcome of the session's own, and mail is still to come of it."""
        entry.receipt = Receipt(lambda: self.consume(entry.uid), 1)
        self._given[entry.uid] = entry

    def _unread(self, uid: str) -> Entry | None:
        if (given := self._given.pop(uid, None)) is not None:
            self._fresh.append(given)
        entry = self._again.pop(uid, given)
        return entry if entry is not None and entry.receipt is not None else None

    def _is_adopted(self, uid: str) -> bool:
        """Whether an outcome for an earlier holder is to be shown, which it is once."""
        number = wire.split_uid(uid)
        owed = self.ledger.is_owed(*number)
        journal = self._session.journal
        if journal is not None and uid in journal:
            self._dirty |= self.ledger.consume(*number)
        if self.ledger.is_consumed(*number):
            if owed:
                self._session.tracker.settle_owed()
            return False
        return self.ledger.adopt(*number)

    def _adopt(self, item: ResultItem, sequence: int, receipt: Receipt) -> Entry:
        """Mail for an earlier holder."""
        names = (item.uid, item.task_id, item.command, item.client, item.job)
        entry = Entry(sequence, sequence, *names, submitted_at=item.submitted_at)
        owed = self.ledger.is_owed(*wire.split_uid(item.uid))
        self._session.tracker.adopt(entry, item, self._accounted(item, receipt), owed=owed)
        self._fresh.append(entry)
        return entry

    def _bring(self, item: ResultItem, reference: Reference, receipt: Receipt, letter: _Letter) -> None:
        known = self._fetching.get(item.uid)
        if known is not None and known[1].holder is letter.holder:
            receipt.hand_over()
            return
        self._fetching[item.uid] = (receipt, letter)
        if known is None:
            self._session.spawn(self._fetch(item, reference))

    def _fetch(self, item: ResultItem, reference: Reference) -> Steps:
        item = yield from self._fetched(item, reference)
        receipt, letter = self._fetching.pop(item.uid)
        entry = self._deliver(item, receipt)
        if entry is not None and letter.holder is not self.holder:
            self._again[item.uid] = entry
        self._spill_over()

    def _fetched(self, item: ResultItem, reference: Reference) -> Steps:
        backoff = Backoff()
        while True:
            try:
                data, _ = yield Call(lambda: self._cloud.blobs.get(reference.blob))
            except BlobNotFound:
                return replace(item, status=Status.FAILED, value=None, error="gone", kind="Unreadable")
            except ServiceError:
                yield backoff.wait(self._session)
            else:
                value: Any = orjson.loads(data)
                return replace(item, value=value)

    def _spill_over(self) -> None:
        """Put outcomes that nobody reads on disk, the oldest first."""
        unclaimed = self._session.plan.unclaimed
        if self._held <= unclaimed and len(self._fresh) <= unclaimed:
            return
        while self._fresh:
            entry = self._fresh.popleft()
            if entry.receipt is not None and isinstance(entry.outcome, ResultItem):
                entry.outcome = _Spilled(entry.outcome)
                self._spilled[entry.uid] = entry
