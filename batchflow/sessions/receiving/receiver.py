"""Receives a session's results from its mailbox, and completes their messages."""

from __future__ import annotations

import asyncio
import math
import random
import tempfile
import time
from typing import TYPE_CHECKING, Final, TypeVarTuple

import anyio

from batchflow.errors import (
    BlobNotFound,
    BrokerError,
    LeaseLost,
    MailboxInUse,
    StorageError,
)
from batchflow.ports.broker import Mailbox
from batchflow.protocol.layout import queue_for
from batchflow.protocol.values.received import unreadable
from batchflow.protocol.wire import Reference, ResultItem
from batchflow.sessions.receiving.checkpoint_store import SAVE_INTERVAL
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
from batchflow.sessions.receiving.result_values import ResultValues
from batchflow.sessions.receiving.spill_file import SpillFile
from batchflow.sessions.records.tracker import Entry
from batchflow.support.backoff import Backoff, opened
from batchflow.support.cadence import until_turn
from batchflow.support.event_log import event_logger
from batchflow.support.recovery import Recovery, recovery_of
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batchflow.protocol.values.received import ValueReader
    from batchflow.sessions.receiving.checkpoint_store import CheckpointStore
    from batchflow.sessions.records.context import SessionContext
    from batchflow.sessions.records.outcomes import Outcomes

logger = event_logger(__name__)

Ts = TypeVarTuple("Ts")

_RECEIVE_INTERVAL: Final = 20.0
"""Seconds between the ends of two waits for a message. Those of all sessions end together."""
_MOST_UNSETTLED: Final = 500
"""Messages of unread results that are held; past this number results spill to disk."""
_SETTLE_AT_ONCE: Final = 16
"""Messages that are completed concurrently."""
_COMPLETABLE_AT_ONCE: Final = 64
"""Completable messages for which the checkpoint is saved at once."""
_COMPLETABLE_BYTES_AT_ONCE: Final = 1 << 20
"""The same in bytes: the broker's client holds each message until it is completed."""
_SETTLE_SHARE: Final = 0.125
"""Share of the time for closing that a round of completions may take. The rest is left to the mailbox's
next attachment."""
_LOCK_GRACE: Final = 30.0
"""Extra seconds to wait for the lock of a client that died."""


class ResultReceiver:
    """Receives the session's messages, also while results stay unread, and completes the delivered ones.

    `MailboxState` decides what becomes of a message. This class has the mailbox, the storage, the spill file
    and the time.
    """

    def __init__(
        self,
        context: SessionContext,
        outcomes: Outcomes,
        checkpoint: CheckpointStore | None,
        reader: ValueReader,
        *,
        living_holder: Callable[[float], Awaitable[str | None]],
        gone_by: Callable[[str], float | None],
        confirmed: Callable[[int], None],
        was_cancelled: Callable[[str, int], bool],
        passed: Callable[[], int],
    ) -> None:
        """`checkpoint`: of a session that can be found again by its name. `reader` opens values.

        `living_holder`: names another client that shows signs of life in the mailbox, which was seen locked
        for so many seconds. `gone_by`: when an
        earlier holder was dead, by the services' clock, as far as its signs of life say. `confirmed`: called
        with the number of a task for which a message came although it had an outcome. `was_cancelled`:
        whether an earlier session of this name had cancelled a task of its incarnation. `passed`: how many
        tasks the broker has accepted or refused.
        """
        self._context = context
        self._outcomes = outcomes
        self._checkpoint = checkpoint
        self._living_holder = living_holder
        self._gone_by = gone_by
        self._confirmed = confirmed
        self._passed = passed
        self.before_receiving: Callable[[], Awaitable[None]] = _nothing
        """Called once, when the checkpoint was loaded and before the first result is received."""
        self._runtime = context.runtime
        self.values: ResultValues = ResultValues(context, outcomes, reader, is_ours=lambda: self._is_ours)
        """The values that lie in blobs."""
        self._id = context.mailbox_id
        self.ours_until: float = 0.0
        """Until when this session has the mailbox's lock, by the monotonic clock."""
        self._some_completable = asyncio.Event()
        self._many_completable = asyncio.Event()
        self._health = context.problems.watch("results", "no results could be received")
        self._reader = reader
        self._spill = SpillFile(reader)
        self._spilling_fails = False
        settings = context.settings
        self.state = MailboxState[Mailbox](
            context.incarnation,
            context.tracker,
            UnreadLimits(_MOST_UNSETTLED, settings.unclaimed, settings.unclaimed_bytes),
            None if checkpoint is None else checkpoint.record,
            self._on_completable,
            reader,
            was_cancelled,
        )

    @property
    def mailbox(self) -> Mailbox | None:
        return self.state.attachment

    @property
    def held(self) -> bool:
        """Whether this session is attached to the mailbox."""
        return self.mailbox is not None

    async def open(self) -> None:
        """Attach, once a dead holder's lock has run out. Raises `MailboxInUse` when a living one has it."""
        backoff = Backoff(0.5)
        clock = asyncio.get_running_loop().time
        began = clock()
        until = began + self._runtime.manifest.lock_duration + _LOCK_GRACE
        waited = False
        while True:
            try:
                self.state.attachment = await self._open_once()
            except MailboxInUse as error:
                waited = True
                if (holder := await self._living_holder(clock() - began)) is not None:
                    what = f"mailbox {self._id!r} is held by {holder}"
                    raise MailboxInUse(f"{what}: close it there, or take another session name") from error
                if clock() > until:
                    raise MailboxInUse(
                        f"mailbox {self._id!r} is held by another process that gives no sign of life"
                    ) from error
                self._context.notices.warn(
                    f"mailbox {self._id!r}: waiting for a dead client's lock to run out"
                )
                await backoff.wait()
            else:
                if waited:
                    await self._other_holder()  # it may have lived on meanwhile
                return

    async def _open_once(self) -> Mailbox:
        queue = queue_for(self._runtime.manifest.results_queues, self._id)
        broker = self._runtime.connections.broker
        began = time.monotonic()
        mailbox = await opened(lambda: broker.mailbox(queue, self._id))
        self._kept(began)
        return self._context.counter.mailbox(mailbox)

    def _kept(self, began: float) -> None:
        """Note a successful request that locked the mailbox, or renewed its lock; it was sent at `began`."""
        self.ours_until = began + self._runtime.manifest.lock_duration

    @property
    def _is_ours(self) -> bool:
        return time.monotonic() <= self.ours_until

    def _check_ours(self) -> None:
        """Raise `LeaseLost` when this process stood still for longer than the lock lasts.

        Another holder may have the mailbox by now, and may deliver what still lies in the socket.
        """
        if not self._is_ours:
            raise LeaseLost(f"the lock of mailbox {self._id!r} was not renewed in time")

    async def aclose(self) -> None:
        mailbox, self.state.attachment = self.mailbox, None
        if mailbox is not None:
            await mailbox.aclose()

    async def run(self) -> None:
        """Receive until cancelled; a lost lock or link is opened again."""
        while self._checkpoint is not None and not self._checkpoint.loaded:
            await self._recovering(self._load, self._checkpoint)
        await self.before_receiving()
        self._outcomes.change.notify()
        while True:
            await self._recovering(self._receive)

    async def _load(self, checkpoint: CheckpointStore) -> None:
        assert self.mailbox is not None
        await checkpoint.load(self.mailbox, self._lost_by)
        self._outcomes.change.notify()

    async def _receive(self) -> None:
        assert self.mailbox is not None
        delivery = await self.mailbox.receive(until_turn(_RECEIVE_INTERVAL))
        self._health.worked()
        if delivery is not None:
            self._check_ours()
            message = ResultMessage(delivery, self.mailbox)
            del delivery  # with its body, which would be held until the next one comes
            self._take(self.state.accept(message))

    def _lost_by(self, holder: str) -> float:
        """Return when an earlier holder had lost the mailbox for certain, by the broker's clock."""
        assert self.mailbox is not None
        locked_until, gone_by = self.mailbox.locked_until, self._gone_by(holder)
        lost_by = math.inf if locked_until is None else locked_until - self._runtime.manifest.lock_duration
        return lost_by if gone_by is None else min(lost_by, gone_by)

    async def keep(self) -> None:
        """Renew the mailbox's lock at a third of its time; at two thirds while the session has no tasks."""
        lock = self._runtime.manifest.lock_duration
        pause = until_turn(lock / 3)
        while True:
            await asyncio.sleep(pause)
            pause = until_turn(lock / 3)
            left = self.ours_until - time.monotonic()
            if self.mailbox is None or (left > lock / 2 and not len(self._context.tracker)):
                continue
            began = time.monotonic()
            try:
                await self.mailbox.renew()
                self._kept(began)
            except BrokerError as error:
                # The receiving side meets the same problem, and opens the mailbox again.
                logger.warning("mailbox_not_renewed", extra={"mailbox": self._id, "error": str(error)})
                pause = min(pause, lock / 10)

    async def settle(self, close_timeout: float) -> None:
        """Complete the messages that were delivered; with a checkpoint, once that was saved.

        At once, that is when the next message comes or nothing does: the mailbox waits for mail most of the
        time. What gathers meanwhile is completed together. `close_timeout`: seconds for closing the session.
        """
        while True:
            if self._checkpoint is None:
                await self._some_completable.wait()
            else:
                with anyio.move_on_after(until_turn(SAVE_INTERVAL)):
                    await self._many_completable.wait()
            self._some_completable.clear()
            self._many_completable.clear()
            await self.flush_settlements(close_timeout)

    async def _save_checkpoint(self, *, last: bool = False) -> None:
        """Return when what was delivered until now may be completed. Raises `BrokerError` if it may not."""
        if self._checkpoint is not None:
            await self._checkpoint.save(self._attached, self._passed, last=last)

    def _attached(self) -> Mailbox:
        if self.mailbox is None:
            raise LeaseLost(f"mailbox {self._id!r} is being opened again", retryable=True)
        return self.mailbox

    async def until_saved(self) -> None:
        """Return when the checkpoint counts all tasks that the broker has accepted; see `CheckpointStore`."""
        if self._checkpoint is not None:
            await self._checkpoint.until_saved(self._attached, self._passed)

    @property
    def is_saved(self) -> bool:
        """Whether a later session of this name learns all that this one has sent and delivered."""
        return self._checkpoint is None or self._checkpoint.is_saved(self._passed())

    async def conclude(self, close_timeout: float) -> None:
        """Save the last checkpoint and complete what was delivered, again while that fails."""
        backoff = Backoff()
        while not await self.flush_settlements(close_timeout, last=True) or self.state.completable:
            await backoff.wait()

    async def flush_settlements(self, close_timeout: float, *, last: bool = False) -> bool:
        """Complete what is due, and return whether the checkpoint was saved.

        A round that began also ends, because what was delivered must not be redelivered. `last`: nothing is
        delivered after this.
        """
        completable = self.state.take_completable()
        try:
            await self._save_checkpoint(last=last)
        except BrokerError as error:
            # The receiving side meets the same problem, and opens the mailbox again.
            self.state.put_back(completable)
            logger.info("checkpoint_not_saved", extra={"mailbox": self._id, "error": str(error)})
            return False
        except BaseException:
            self.state.put_back(completable)
            raise
        while completable:
            batch, completable = completable[:_SETTLE_AT_ONCE], completable[_SETTLE_AT_ONCE:]
            with anyio.move_on_after(close_timeout * _SETTLE_SHARE, shield=True):
                if len(batch) == 1:
                    await self._complete(batch[0])
                    continue
                async with task_group() as group:
                    for message in batch:
                        group.start_soon(self._complete, message)
        return True

    async def _complete(self, message: ResultMessage[Mailbox]) -> None:
        try:
            await message.attachment.complete(message.delivery)
        except BrokerError as error:
            logger.info("mail_not_completed", extra={"mailbox": self._id, "error": str(error)})
            if self.state.not_completed(message, error):
                asyncio.get_running_loop().call_later(SAVE_INTERVAL, self._some_completable.set)
            return
        for blob in message.blobs:
            self.values.uses.consumed(blob)

    async def _recovering(self, step: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
        """Make a step. After an error, do what `recovery_of` says, and return for the next step."""
        try:
            await step(*args)
        except BrokerError as error:
            match recovery_of(error):
                case Recovery.END:
                    raise
                case Recovery.REOPEN:
                    self._context.notices.warn(f"the mailbox was lost and is opened again: {error}")
                    await self._reopen()
                case Recovery.RETRY:
                    self._context.notices.warn(f"no results at present, trying again: {error}")
                    self._health.failed(error)
                    await asyncio.sleep(random.uniform(0.1, 1.0))

    async def _reopen(self) -> None:
        """Attach again. Raises `MailboxInUse` when another holder lives, or had the mailbox meanwhile."""
        lost = self.mailbox
        self.state.lost()
        if lost is not None:
            await lost.aclose()
        backoff = Backoff()
        while not self.held:
            try:
                await self._win_back()
            except BrokerError as error:
                if recovery_of(error) is Recovery.END:
                    raise
                if isinstance(error, MailboxInUse) and (holder := await self._other_holder()) is not None:
                    raise MailboxInUse(f"mailbox {self._id!r} was taken over by {holder}") from error
                self._health.failed(error)
                await backoff.wait()
        self._health.worked()

    async def _win_back(self) -> None:
        """Open the mailbox again. Another holder's checkpoint, written meanwhile, must stay as it is."""
        mailbox = await self._open_once()
        try:
            if self._checkpoint is not None:
                await self._checkpoint.check(mailbox)
        except BaseException:
            await mailbox.aclose()
            raise
        self.state.attachment = mailbox

    async def _other_holder(self) -> str | None:
        try:
            return await self._living_holder(math.inf)
        except StorageError as error:
            logger.warning("presence_not_read", extra={"mailbox": self._id, "error": str(error)})
            return None

    def _take(self, commands: list[MailboxCommand]) -> None:
        """Perform commands, then spill unread results that exceed the limits."""
        for command in commands:
            self._perform(command)
        self._outcomes.change.notify()
        for entry, outcome in self.state.overflow():
            try:
                place = self._spill.write(outcome)
            except OSError as error:
                self.state.keep(entry)
                self._tell_spilling(error)
                return
            self.state.spill(entry, place)
            self._spilling_fails = False

    def _tell_spilling(self, error: OSError) -> None:
        """Warn once that results stay in memory. The next result that comes tries again."""
        if not self._spilling_fails:
            self._spilling_fails = True
            self._context.notices.warn(
                f"unread results stay in memory, because no temporary file can be written: {error}. Read "
                f"results, or free space in {tempfile.gettempdir()} (TMPDIR)"
            )

    def _perform(self, command: MailboxCommand) -> None:
        context = self._context
        match command:
            case Resolved(entry, outcome):
                self._learn(outcome)
                self.values.keep(entry)
                self._outcomes.announce(entry)
            case Ended(entry):
                self._outcomes.tell_ended(entry)
            case Confirmed(sequence):
                self._confirmed(sequence)
            case Fetch(item, reference):
                context.background.start(self._fetch(item, reference), f"fetch the result of {item.task_id}")
            case Tell(event):
                context.tell(event)
            case Dropped(reason):
                context.notices.warn(f"a message in the mailbox was dropped: {reason}")

    def _learn(self, outcome: ResultItem) -> None:
        if outcome.started_at is not None and outcome.finished_at is not None:
            self._context.policy.seen(outcome.command, outcome.finished_at - outcome.started_at)

    def expect_message(self, entry: Entry) -> None:
        """Note that a task has an outcome of the session's own although an agent's is still to come."""
        self.state.expect_message(entry)

    async def _fetch(self, item: ResultItem, reference: Reference) -> None:
        try:
            whole = await self.values.fetch(item, reference)
        except BlobNotFound as error:
            failure = unreadable(item, f"its result cannot be fetched: {error}")
            self._take(self.state.not_there(item, failure))
        else:
            self._take(self.state.fetched(whole, reference.size))

    def _on_completable(self) -> None:
        self._some_completable.set()
        if (
            len(self.state.completable) >= _COMPLETABLE_AT_ONCE
            or self.state.completable_bytes >= _COMPLETABLE_BYTES_AT_ONCE
        ):
            self._many_completable.set()


async def _nothing() -> None:
    pass
