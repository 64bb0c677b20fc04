"""A session's two links to the broker: its outbox and its mailbox."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import orjson

from batchflow import wire
from batchflow.broker import Delivery, Mailbox, OutgoingMessage, Sender
from batchflow.concurrency import task_group
from batchflow.control import queue_for
from batchflow.errors import (
    BrokerError,
    LeaseLost,
    MailboxInUse,
    ProtocolError,
    StorageError,
)
from batchflow.model import Event, Status
from batchflow.outcomes import submit_failed
from batchflow.spill import SpillFile
from batchflow.tracker import Entry, Receipt
from batchflow.wire import EventItem, Reference, ResultItem

if TYPE_CHECKING:
    from batchflow.session import Session

logger = logging.getLogger(__name__)

_RECEIVE_WAIT: Final = 30.0
"""Seconds of one wait for mail; a wait that ends without any only begins again."""
_MOST_UNSETTLED: Final = 500
"""Messages of results that are held because nobody has read them; past this their outcomes are spilled."""
_SETTLE_AT_ONCE: Final = 16
_LONGEST_BACKOFF: Final = 10.0


class Backoff:
    """Growing waits between tries, with jitter; seconds."""

    def __init__(self, first: float = 0.1) -> None:
        self._first = first
        self._delay = first

    async def wait(self) -> None:
        await asyncio.sleep(self._delay * random.uniform(0.5, 1.0))
        self._delay = min(self._delay * 2, _LONGEST_BACKOFF)

    def reset(self) -> None:
        self._delay = self._first


class Outbox:
    """Sends what was submitted. One coroutine owns the link; what gathers while it sends rides together."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._sender: Sender | None = None
        self._wake = asyncio.Event()
        self._messages = 0
        self.passed = 0
        """Every task with a lower sequence number is accepted, or has failed."""

    async def open(self) -> None:
        queues = self._session.pool._manifest.task_queues
        queue = queue_for(queues, wire.mailbox_id(self._session.job_name, self._session.name))
        self._sender = await self._session.pool.client._services.broker.sender(queue)

    async def aclose(self) -> None:
        if self._sender is not None:
            await self._sender.aclose()

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        tracker = self._session._tracker
        while True:
            await self._wake.wait()
            entries, items = tracker.take(self._session._policy.pack(tracker.sending))
            if entries:
                await self._send(entries, items)
                self.passed = entries[-1].sequence + 1
            else:
                self._wake.clear()
                self.passed = tracker.next_sequence()
            self._session._room.beat()

    async def drain(self) -> None:
        """Return when everything was sent."""
        while self._session._tracker.sending:
            await self._session._room.wait()

    async def _send(self, entries: list[Entry], items: list[bytes]) -> None:
        """Until the broker has it or refuses it for good; the same bytes under the same id each time."""
        assert self._sender is not None
        session = self._session
        self._messages += 1
        message = OutgoingMessage(wire.join("tasks", items), f"{session.incarnation}-{self._messages}")
        backoff = Backoff()
        while True:
            try:
                await self._sender.send(message)
            except BrokerError as error:
                if not error.retryable:
                    self._failed(entries, error)
                    return
                session._warn(f"the broker did not take {len(entries)} tasks yet, trying again: {error}")
                await backoff.wait()
            else:
                session._tracker.accepted(entries)
                self._tell_accepted(entries)
                return

    def _tell_accepted(self, entries: list[Entry]) -> None:
        waiters = self._session._accepting
        if not waiters:
            return
        for entry in entries:
            waiter = waiters.pop(entry.sequence, None)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def _failed(self, entries: list[Entry], error: BrokerError) -> None:
        session = self._session
        for entry in entries:
            session._resolve(entry, submit_failed(entry, session.incarnation, str(error)))
        session._changed()


class Inbox:
    """Receives the session's mail, whether or not anybody reads it, and settles what was handed over."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._id = wire.mailbox_id(session.job_name, session.name)
        self._mailbox: Mailbox | None = None
        self._due: list[Delivery] = []
        self._due_wake = asyncio.Event()
        self._held = 0
        self._fresh: deque[Entry] = deque()
        self._spill = SpillFile()

    async def open(self) -> None:
        """Raises `MailboxInUse`, naming the holder, when that one lives; a dead one's lock is waited for."""
        backoff = Backoff(0.5)
        while True:
            try:
                await self._open_once()
            except MailboxInUse as error:
                if (holder := await self._session._presence.living_holder()) is not None:
                    raise MailboxInUse(f"mailbox {self._id!r} is held by {holder}") from error
                self._session._warn(f"mailbox {self._id!r}: waiting for a dead client's lock to run out")
                await backoff.wait()
            else:
                return

    async def _open_once(self) -> None:
        queue = queue_for(self._session.pool._manifest.results_queues, self._id)
        self._mailbox = await self._session.pool.client._services.broker.mailbox(queue, self._id)

    async def aclose(self) -> None:
        if self._mailbox is not None:
            await self._mailbox.aclose()

    async def run(self) -> None:
        """Receive for ever; a lost lock or link is opened again."""
        while True:
            async with self._reopening():
                assert self._mailbox is not None
                delivery = await self._mailbox.receive(_RECEIVE_WAIT)
                if delivery is not None:
                    self._accept(delivery)

    async def keep(self) -> None:
        """Renew the mailbox's lock at a third of its time."""
        while True:
            await asyncio.sleep(self._session.pool._manifest.lock_duration / 3)
            try:
                assert self._mailbox is not None
                await self._mailbox.renew()
            except BrokerError as error:
                # The receiving side meets the same trouble, and opens the mailbox again.
                logger.warning("mailbox_not_renewed", extra={"mailbox": self._id, "error": str(error)})

    async def settle(self) -> None:
        """Complete what was handed over, several messages at a time."""
        while True:
            await self._due_wake.wait()
            self._due_wake.clear()
            await self.flush_settlements()

    async def flush_settlements(self) -> None:
        while self._due and self._mailbox is not None:
            batch, self._due = self._due[:_SETTLE_AT_ONCE], self._due[_SETTLE_AT_ONCE:]
            async with task_group() as group:
                for delivery in batch:
                    group.start_soon(self._complete, self._mailbox, delivery)

    async def _complete(self, mailbox: Mailbox, delivery: Delivery) -> None:
        try:
            await mailbox.complete(delivery)
        except BrokerError as error:
            # It will come again and be recognised as a duplicate, or go with the mailbox.
            logger.info("mail_not_completed", extra={"mailbox": self._id, "error": str(error)})

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
            await asyncio.sleep(random.uniform(0.1, 1.0))

    async def _reopen(self) -> None:
        backoff = Backoff()
        if self._mailbox is not None:
            await self._mailbox.aclose()
        while True:
            try:
                await self._open_once()
            except MailboxInUse:
                await backoff.wait()
            except BrokerError as error:
                if not error.retryable:
                    raise
                await backoff.wait()
            else:
                return

    def _accept(self, delivery: Delivery) -> None:
        try:
            items = wire.decode(delivery.body)
        except ProtocolError as error:
            self._session._warn(f"a message in the mailbox was dropped: {error}")
            self._complete_later(delivery)
            return
        self._held += 1
        receipt = Receipt(lambda: self._handed_over(delivery), len(items))
        for item in items:
            if isinstance(item, ResultItem):
                if isinstance(item.value, Reference):
                    fetch = self._fetch(item, item.value, receipt)
                    self._session._spawn(fetch, f"fetch the result of {item.task_id}")
                else:
                    self._deliver(item, receipt)
            else:
                if isinstance(item, EventItem):
                    self._session._tell(Event(item.kind, item.message, item.at, item.task_id, item.data))
                receipt.hand_over()
        self._session._changed()
        self._spill_over()

    def _deliver(self, item: ResultItem, receipt: Receipt) -> None:
        session = self._session
        if item.started_at is not None and item.finished_at is not None:
            session._policy.seen(item.command, item.finished_at - item.started_at)
        incarnation, sequence = wire.split_uid(item.uid)
        if incarnation != session.incarnation:
            self._adopt(item, sequence, receipt)
            return
        entry = session._tracker.find(sequence)
        if entry is None or not session._resolve(entry, item, receipt):
            receipt.hand_over()  # a duplicate: its outcome is known already
        else:
            self._fresh.append(entry)

    def _adopt(self, item: ResultItem, sequence: int, receipt: Receipt) -> None:
        """Mail for an earlier holder of this mailbox."""
        entry = Entry(
            sequence=sequence,
            index=sequence,
            task_id=item.task_id,
            command=item.command,
            client=item.client,
            job=item.job,
            submitted_at=item.submitted_at,
            tag=item.tag,
        )
        self._session._tracker.adopt(entry, item, receipt)
        self._fresh.append(entry)

    async def _fetch(self, item: ResultItem, reference: Reference, receipt: Receipt) -> None:
        """Bring a result that travels by reference; its blob goes when it was handed over."""
        backoff = Backoff()
        while True:
            try:
                blob = await self._session.pool._out.get(reference.blob)
                item = replace(item, value=orjson.loads(blob.data))
            except StorageError as error:
                if error.retryable:
                    await backoff.wait()
                    continue
                item = _unreadable(item, f"its result cannot be fetched: {error}")
            except orjson.JSONDecodeError as error:
                item = _unreadable(item, f"its result is not JSON: {error}")
            break
        self._deliver(item, Receipt(lambda: self._consumed(reference, receipt), 1))
        self._session._changed()

    def _consumed(self, reference: Reference, receipt: Receipt) -> None:
        session = self._session
        session._spawn(session._drop_blob(session.pool._out, reference.blob), "delete a result's blob")
        receipt.hand_over()

    def _handed_over(self, delivery: Delivery) -> None:
        self._held -= 1
        self._complete_later(delivery)

    def _complete_later(self, delivery: Delivery) -> None:
        self._due.append(delivery)
        self._due_wake.set()

    def _spill_over(self) -> None:
        """Put outcomes that nobody reads on disk, the oldest first, so that their messages can go."""
        fresh = self._fresh
        while fresh and fresh[0].receipt is None:
            fresh.popleft()
        if self._held <= _MOST_UNSETTLED and len(fresh) <= self._session._settings.unclaimed:
            return
        while fresh:
            entry = fresh.popleft()
            if entry.receipt is not None and isinstance(entry.outcome, ResultItem):
                entry.outcome = self._spill.write(entry.outcome)
                entry.hand_over()


def _unreadable(item: ResultItem, why: str) -> ResultItem:
    error = f"the task succeeded, but {why}"
    return replace(item, status=Status.FAILED, value=None, error=error, kind="TaskFailed")
