"""A session's mailbox in the model: the real state, delivery record and checkpoint, with a thin shell.

The shell has the steps of the real one. What was delivered is completed only after a checkpoint that says so
was saved. A mailbox that was lost is opened again before anything is written. The blob of a result goes after
its message.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, assert_never

import orjson

from batchflow.errors import BlobNotFound, LeaseLost, MailboxInUse, ServiceError
from batchflow.local import queues as core
from batchflow.model import Status
from batchflow.protocol.documents import gone_after
from batchflow.protocol.wire import Reference, ResultItem
from batchflow.sessions.receiving.mailbox_state import (
    Confirmed,
    Dropped,
    Ended,
    Fetch,
    MailboxCommand,
    MailboxState,
    Resolved,
    ResultMessage,
    Tell,
    UnreadLimits,
)
from batchflow.sessions.records.checkpoint import Checkpoint, DeliveryRecord
from tests.model.cloud import as_delivery
from tests.model.world import Backoff, Call, Steps, StepsTo, Wait, sleep

if TYPE_CHECKING:
    from tests.model.sessions import Session

_SAVE_EVERY: Final = 1.0
_PREFETCH: Final = 10


class TakenOver(Exception):
    """Another living session holds the mailbox."""


class Holder:
    """What the broker knows a link by."""


@dataclass(slots=True, eq=False)
class _Spilled:
    """An outcome that lies in a file: it dies with its session."""

    outcome: ResultItem

    def read(self) -> ResultItem:
        return self.outcome


class Mailbox:
    """What comes in, until it was handed over and settled."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._cloud = session.world.cloud
        self._id = session.mailbox_id
        self._opening: Holder | None = None
        self._opened_at = 0.0
        """When the lock was got, by the broker's clock."""
        self._ours_until = 0.0
        """Until when the mailbox is locked for us."""
        self.record: DeliveryRecord = DeliveryRecord(session.name, session.journal)
        limits = UnreadLimits(session.plan.unclaimed, session.plan.unclaimed, sys.maxsize)
        self.state: MailboxState[Holder] = MailboxState(
            session.name,
            session.tracker,
            limits,
            self.record,
            lambda: None,
            was_cancelled=lambda incarnation, sequence: session.cancelling.was_cancelled(
                incarnation, sequence
            ),
        )

    @property
    def holder(self) -> Holder | None:
        """None while the mailbox is not ours, or not known to be."""
        return self.state.attachment

    @property
    def quiet(self) -> bool:
        """Whether nothing is left to do."""
        return self.record.loaded and not (self.state.completable or self.state.fetching or self._is_behind)

    @property
    def owed(self) -> int:
        """How many outcomes a later holder would wait for."""
        return sum(progress.owed for progress in self.record.checkpoint.incarnations.values())

    @property
    def _is_behind(self) -> bool:
        """Whether there is something to save."""
        return self.record.is_behind(self._session.passed)

    # Opening

    def open(self) -> Steps:
        """Raises `TakenOver` when a living client has it."""
        backoff = Backoff(0.5)
        while self.holder is None:
            yield from self._open_once(backoff)

    def _open_once(self, backoff: Backoff) -> Steps:
        """One try; where it fails, who else may live, and a wait."""
        holder = self._opening = Holder()
        began = self._session.now
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
            self.state.attachment, self._opening = holder, None
            self._ours_until = began + self._cloud.lock

    def _check(self, holder: Holder) -> Steps:
        """Raise `TakenOver` when another session held the mailbox meanwhile."""
        if self.record.loaded:
            state = yield Call(partial(self._read_state, holder))
            if self.record.was_replaced(Checkpoint.decode(state)):
                self._abandon(holder)
                raise TakenOver("another session held the mailbox meanwhile")

    def _lock(self, holder: Holder) -> None:
        self._need(holder)
        self._cloud.results.accept_session(self._id, holder, self._session.now)
        self._opened_at = self._session.now

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
        self.state.attachment = self._opening = None
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
            if age < gone_after(presence.interval):
                raise TakenOver(presence.nonce)

    def _reopen(self) -> Steps:
        """Raises `TakenOver`, also when another session held it meanwhile and has closed."""
        self.let_go()
        self.state.lost()
        yield from self.open()

    def load(self) -> Steps:
        """What earlier holders have read, and are owed."""
        record = self.record
        while not record.loaded:
            try:
                checkpoint = Checkpoint.decode((yield Call(lambda: self._read_state(self.holder))))
                if record.was_replaced(checkpoint):
                    raise TakenOver("another session held the mailbox meanwhile")
                owed = record.enter(checkpoint, lost_by=self._opened_at)
                yield Call(partial(self._write_state, checkpoint.encode()))
            except LeaseLost:
                yield from self._reopen()
            except ServiceError:
                yield sleep(self._session, 0.5)
            else:
                record.load(checkpoint)
                self._session.tracker.expect(owed)

    def _read_state(self, holder: Holder | None) -> bytes | None:
        return self._cloud.results.session_state(self._id, self._need(holder), self._session.now)

    def _write_state(self, state: bytes) -> None:
        holder, now = self._need(self.holder), self._session.now
        self._cloud.results.set_session_state(self._id, holder, state, now)

    # Services

    def receive(self) -> Steps:
        while True:
            yield Wait(self._may_receive, signal=self._cloud.results_come[self._id])
            try:
                found = yield Call(self._fetch_messages, receives=True)
            except LeaseLost:
                yield from self._reopen()
            except ServiceError:
                yield sleep(self._session, 0.5)
            else:
                if (holder := self.holder) is not None:
                    self._accept(found, holder)

    def _accept(self, found: list[core.Message], holder: Holder) -> None:
        for message in found:
            self._take(self.state.accept(ResultMessage(as_delivery(message), holder)))

    def _may_receive(self) -> bool:
        results = self._cloud.results
        if self.holder is None or results.has_ready(self._id):
            return True
        return results.session_holder(self._id, self._session.now) is not self.holder

    def _fetch_messages(self) -> list[core.Message]:
        return self._cloud.results.receive(
            _PREFETCH, self._session.now, self._need(self.holder), session_id=self._id
        )

    def keep(self) -> Steps:
        """Renew the mailbox's lock."""
        while True:
            yield sleep(self._session, self._cloud.lock / 3)
            try:
                began = self._session.now
                yield Call(self._renew)
                self._ours_until = began + self._cloud.lock
            except ServiceError:
                continue

    def _renew(self) -> None:
        self._cloud.results.renew_session(self._id, self._need(self.holder), self._session.now)

    def settle(self) -> Steps:
        """Save the checkpoint, then complete what it covers."""
        while True:
            yield Wait(lambda: self.record.loaded and (bool(self.state.completable) or self._is_behind))
            yield sleep(self._session, _SAVE_EVERY)
            yield from self.settle_once()

    def settle_once(self) -> Steps:
        """One round; what fails is left to the next one."""
        batch = self.state.take_completable()
        if not (yield from self.save()):
            self.state.put_back(batch)
            return
        for message in batch:
            yield from self._complete(message)

    def save(self, *, last: bool = False) -> StepsTo[bool]:
        """Whether what was handed over until now may be completed."""
        if not self.record.loaded or self.holder is None:
            return False
        if not self.record.is_behind(self._session.passed, last=last):
            return True
        state = self.record.to_save(self._session.passed, last=last)
        saved = False
        try:
            yield Call(lambda: self._write_state(state))
            saved = True
        except ServiceError:
            pass
        finally:
            if not saved:
                self.record.not_saved()
        return saved

    def _complete(self, message: ResultMessage[Holder]) -> Steps:
        try:
            yield Call(lambda: self._complete_held(message))
        except ServiceError as error:
            self.state.not_completed(message, error)
            return
        for blob in message.blobs:
            self._session.spawn(self._session.drop_blob(blob))

    def _complete_held(self, message: ResultMessage[Holder]) -> None:
        if message.attachment is not self._need(self.holder):
            raise core.LockLost("it came by another opening of the mailbox")
        self._cloud.results.complete(bytes.fromhex(message.delivery.lock_token), self._session.now)

    # What comes

    def _take(self, commands: list[MailboxCommand]) -> None:
        """Carry out the state's commands, then spill unread results."""
        for command in commands:
            self._perform(command)
        for entry, outcome in self.state.overflow():
            self.state.spill(entry, _Spilled(outcome))

    def _perform(self, command: MailboxCommand) -> None:
        match command:
            case Resolved(entry, _):
                self._session.resolved(entry)
            case Confirmed(sequence):
                self._session.cancelling.confirmed(sequence)
            case Fetch(item, reference):
                self._session.spawn(self._fetch(item, reference))
            case Ended(entry):
                self._session.ended(entry)
            case Dropped() | Tell():
                raise AssertionError(f"no message of the model causes this: {command}")
            case _:
                assert_never(command)

    def _fetch(self, item: ResultItem, reference: Reference) -> Steps:
        try:
            whole = yield from self._fetched(item, reference)
        except BlobNotFound:
            failure = replace(item, status=Status.FAILED, value=None, error="gone", kind="Unreadable")
            self._take(self.state.not_there(item, failure))
        else:
            self._take(self.state.fetched(whole, reference.size))

    def _fetched(self, item: ResultItem, reference: Reference) -> StepsTo[ResultItem]:
        backoff = Backoff()
        while True:
            try:
                data, _ = yield Call(lambda: self._cloud.blobs.get(reference.blob))
            except BlobNotFound:
                if self._session.now <= self._ours_until:
                    raise
                yield backoff.wait(self._session)
            except ServiceError:
                yield backoff.wait(self._session)
            else:
                value: Any = orjson.loads(data)
                return replace(item, value=value)
