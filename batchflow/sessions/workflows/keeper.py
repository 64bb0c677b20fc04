"""Keeps what waits in a session with a name, so that a later session of that name goes on with it.

Two things outlive the client: documents with the tasks that wait, and in the mailbox the messages with the
results that they wait for. A message stays there until the broker has all tasks that take its values. Rules:

- A task is written once the broker has what it waits for, or that is written itself. So a document never
  has a task that waits for one which was lost with the outbox.
- A document is deleted when all its tasks have ended, and their outcomes were delivered.
- An outcome that the session gives such a task by itself counts as delivered when it was shown, not before:
  the task may be written down, or just be being written.
- A later session sends a task under its first uid. Its outcome is told apart by that alone, and shown once.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import anyio

from batchflow.errors import BlobNotFound, ProtocolError, StorageError
from batchflow.model import Status
from batchflow.protocol import layout
from batchflow.protocol.wire import Reference, make_uid, split_uid
from batchflow.sessions.records.tracker import Acknowledgement, Entry, lost_result
from batchflow.sessions.workflows import stored
from batchflow.support.backoff import Backoff
from batchflow.support.waiting import ChangeNotifier

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchflow.sessions.records.checkpoint import DeliveryRecord
    from batchflow.sessions.records.context import SessionContext
    from batchflow.sessions.records.expiry import ExpiryWatch
    from batchflow.sessions.workflows.graph import Waiting
    from batchflow.sessions.workflows.stored import StoredTask

_GATHER: Final = 0.05
"""Seconds in which tasks gather that are written together."""
_LOOK: Final = 1.0
"""Seconds between two looks for documents that are not needed any more, and inputs that never come."""
_AT_ONCE: Final = 1_000
"""Tasks of a document."""
_LOST_AFTER: Final = 60.0
"""Seconds in which a result that was delivered to an earlier session comes again, if its message is there."""


class KeptMail(Protocol):
    """The mailbox, as far as results are needed by tasks that wait."""

    known: dict[str, Entry]
    """Tasks of earlier sessions that this one goes on with, and what these wait for, by their uids."""

    def retain(self, entry: Entry) -> None:
        """Keep the message of an outcome until `release`, also when the outcome was delivered."""

    def release(self, uid: str) -> None:
        """Let a message go that was kept."""


@dataclass(slots=True, eq=False)
class _Document:
    blob: str
    entries: list[Entry]


class WorkflowKeeper:
    """Writes down the tasks of one session that wait, and finds those of the sessions before."""

    def __init__(
        self,
        context: SessionContext,
        record: DeliveryRecord,
        mail: KeptMail,
        expiries: ExpiryWatch,
        *,
        forget_blob: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`forget_blob`: called with the blob of a result that an earlier session had delivered.

        `clock`: that of the event loop, in seconds.
        """
        self._clock = clock
        self._context = context
        self._forget_blob = forget_blob
        self._expiries = expiries
        self._record = record
        self._mail = mail
        self._ctl = context.runtime.ctl
        self._unwritten: deque[Waiting] = deque()
        self._written: set[str] = set()
        """The uids of the tasks that are in documents, or that an earlier session had."""
        self._documents: list[_Document] = []
        self._inputs: dict[Entry, tuple[Entry, ...]] = {}
        """What each task waits for that the broker does not have."""
        self._needed: dict[Entry, int] = {}
        """How many of these wait for a task."""
        self._owing: set[Entry] = set()
        """Tasks with an outcome that the session gave itself, and that was not shown."""
        self._restored = asyncio.Event()
        self._wake = asyncio.Event()
        self._patience = math.inf
        """Seconds until inputs that did not come are given up."""
        self._looked_at = 0.0
        self._tell_ended: Callable[[Entry], None] = lambda _: None
        self._saved = ChangeNotifier()
        self._writing: list[Waiting] = []
        """What is being written now."""
        self._lock = asyncio.Lock()
        self._failure: StorageError | None = None
        self._numbers = 0

    @property
    def restored(self) -> bool:
        """Whether it is known what waits since earlier sessions."""
        return self._restored.is_set()

    @property
    def unsaved(self) -> int:
        """How many tasks wait that no document has."""
        return sum(each.entry.status is Status.WAITING for each in (*self._unwritten, *self._writing))

    # ---- what waits in this session

    def hold(self, waiting: Waiting) -> None:
        """Note a task that waits."""
        if waiting.entry.uid not in self._written:
            self._unwritten.append(waiting)
            self._wake.set()
        self._inputs[waiting.entry] = waiting.inputs
        for entry in waiting.inputs:
            self._needed[entry] = self._needed.get(entry, 0) + 1

    def ended(self, entry: Entry) -> None:
        """Note that a task has its outcome. Its message stays as long as tasks wait that take its value."""
        if entry in self._needed:
            self._mail.retain(entry)
        else:
            self._mail.release(entry.uid)  # what waited for it ended before the message came again
        if entry not in self._owing:
            self.sent(entry)

    def sent(self, entry: Entry) -> None:
        """Note that the broker has a task: it does not need the results any more that it waited for."""
        if entry.was_accepted and not entry.done and not self._is_own(entry):
            # the results that it waited for may go: a later session waits for its own message alone
            self._record.note_sent(entry.uid)
        for each in self._inputs.pop(entry, ()):
            self._needed[each] -= 1
            if not self._needed[each]:
                del self._needed[each]
                self._mail.release(each.uid)

    def keeps(self, entry: Entry) -> bool:
        """Return whether a later session may go on with a task.

        It waits or waited for others, and the broker does not have it.
        """
        return entry in self._inputs

    def owe(self, entry: Entry) -> None:
        """Let an outcome that the session gave itself count as delivered when it was shown, not before.

        Until then the results stay that it follows from, so that a later session comes to the same.
        """
        self._owing.add(entry)
        if not self._is_own(entry):  # an earlier session may have come to the same
            entry.repeated = self._record.may_be_repeated(math.inf, undated=True)
        entry.acknowledgement = Acknowledgement(partial(self._shown, entry), 1)

    def _shown(self, entry: Entry) -> None:
        self._record.consume(entry.uid)
        self._owing.discard(entry)
        self.sent(entry)

    def _is_own(self, entry: Entry) -> bool:
        """Return whether this session is the one that a task was submitted in."""
        return split_uid(entry.uid)[0] == self._context.incarnation

    async def until_saved(self) -> None:
        """Return when a later session finds all tasks that wait now. Safe to cancel.

        Raises `StorageError` when they cannot be written, `SessionClosed`.
        """
        while not self.restored:
            self._context.lifetime.check_not_ended()
            with anyio.move_on_after(_LOOK):
                await self._restored.wait()
        left = [*self._unwritten, *self._writing]
        while left:
            if left[-1].entry.uid in self._written or left[-1].entry.status is not Status.WAITING:
                left.pop()
                continue
            self._context.lifetime.check_not_ended()
            if self._failure is not None:
                raise self._failure
            with anyio.move_on_after(_LOOK):
                await self._saved.wait()

    async def run(self) -> None:
        """Write tasks down and delete documents, until cancelled."""
        await self._restored.wait()
        while True:
            pause = _GATHER if self._unwritten else _LOOK if self._documents else None
            with anyio.move_on_after(pause):
                await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(_GATHER)
            await self.write()
            self._saved.notify()
            self.delete_documents()
            self.give_up_lost()

    async def close(self) -> None:
        """Write what is left, once it is known what waits since earlier sessions."""
        if self._unwritten or self._writing:
            await self._restored.wait()
            await self.write()

    async def write(self) -> None:
        """Write the tasks that can be written now. A failure is kept for `until_saved`, and tried again."""
        async with self._lock:
            while batch := self._writable():
                self._writing = batch
                self._numbers += 1
                prefix = layout.waiting_prefix(self._context.job_name, self._context.name)
                blob = f"{prefix}{self._context.incarnation}-{self._numbers:06}.json"
                await self._put(blob, stored.encode(batch))
                self._documents.append(_Document(blob, [each.entry for each in batch]))
                self._written.update(each.entry.uid for each in batch)
                self._writing = []
                self._saved.notify()

    async def _put(self, blob: str, data: bytes) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._ctl.put(blob, data)
            except StorageError as error:
                self._failure = error
                self._saved.notify()
                self._context.notices.warn(f"tasks that wait for others are not saved yet: {error}")
                await backoff.wait()
            else:
                self._failure = None
                return

    def _writable(self) -> list[Waiting]:
        """Take the tasks that wait, and of which all inputs are safe."""
        taken: list[Waiting] = []
        uids = set[str]()
        left: deque[Waiting] = deque()
        while self._unwritten and len(taken) < _AT_ONCE:
            waiting = self._unwritten.popleft()
            if waiting.entry.status is not Status.WAITING:
                continue
            if all(each.uid in uids or self._is_safe(each) for each in waiting.inputs):
                taken.append(waiting)
                uids.add(waiting.entry.uid)
            else:
                left.append(waiting)
        self._unwritten.extendleft(reversed(left))
        return taken

    def _is_safe(self, entry: Entry) -> bool:
        return entry.done or entry.was_accepted or entry.uid in self._written

    def delete_documents(self) -> None:
        """Delete in the background the documents whose tasks have ended, and were delivered."""
        kept: list[_Document] = []
        for document in self._documents:
            open_entries = []
            for entry in document.entries:
                if entry.done and entry.acknowledgement is None:
                    self._written.discard(entry.uid)
                    self._mail.known.pop(entry.uid, None)
                else:
                    open_entries.append(entry)
            document.entries = open_entries
            if open_entries:
                kept.append(document)
            else:
                self._context.delete_later(self._ctl, document.blob, "delete tasks that waited")
        self._documents = kept

    # ---- what waits since earlier sessions

    async def restore(self, hold: Callable[[Waiting], None], ended: Callable[[Entry], None]) -> None:
        """Go on with the tasks that wait since earlier sessions; before the first result is received.

        `hold`: takes in a task that waits. `ended`: called with an input that never comes. The checkpoint was
        loaded.
        """
        self._tell_ended = ended
        documents = await self._read_all()
        tasks = [task for _, found in documents for task in found]
        values = {uid: item for task in tasks for uid, item in task.values.items()}
        gone = {task.uid for task in tasks if self._was_delivered(task.uid)}
        entries = {task.uid: self._take_over(task) for task in tasks if task.uid not in gone}
        self._written.update(task.uid for task in tasks)
        self._mail.known.update(entries)

        def find(uid: str) -> Entry:
            if (entry := self._mail.known.get(uid)) is None:
                entry = self._mail.known[uid] = self._unknown(uid)
                if (item := values.get(uid)) is not None:
                    entry.learn(item)
            return entry

        for task in tasks:
            if (taken := entries.get(task.uid)) is not None and taken.status is Status.WAITING:
                hold(task.waiting(taken, find))
        self._documents += [
            _Document(blob, [entries[task.uid] for task in found if task.uid in entries])
            for blob, found in documents
        ]
        for uid, item in values.items():
            if isinstance(item.value, Reference) and self._was_delivered(uid):
                self._forget_blob(item.value.blob)
        self._patience, self._looked_at = _LOST_AFTER, self._clock()
        self._restored.set()
        self._wake.set()
        if entries:
            self._context.notices.inform(f"{len(entries)} tasks of earlier sessions wait for others")

    async def _read_all(self) -> list[tuple[str, list[StoredTask]]]:
        """Read the documents of earlier sessions, again while storage is away. Raises `StorageError`."""
        backoff = Backoff()
        while True:
            try:
                return await self._read_each()
            except StorageError as error:
                if not error.retryable:
                    raise
                self._context.notices.warn(f"tasks that wait for others cannot be read yet: {error}")
                await backoff.wait()

    async def _read_each(self) -> list[tuple[str, list[StoredTask]]]:
        context = self._context
        if self._record.checkpoint.epoch <= 1:
            return []  # there was no session of this name
        prefix = layout.waiting_prefix(context.job_name, context.name)
        names = sorted([info.name async for info in self._ctl.list(prefix)])
        found: list[tuple[str, list[StoredTask]]] = []
        for name in names:
            try:
                found.append((name, stored.decode((await self._ctl.get(name)).data)))
            except BlobNotFound:
                continue  # the earlier session was deleting it
            except ProtocolError as error:
                context.notices.warn(f"{name}: {error}")
        return found

    def _take_over(self, task: StoredTask) -> Entry:
        """Return a task of an earlier session as one of this, under its own uid."""
        context = self._context
        tracker, sequence = context.tracker, context.tracker.next_sequence()
        submitted = self._clock() + task.submitted_at - time.time()
        entry = Entry(
            sequence=sequence,
            index=task.index,
            uid=task.uid,
            task_id=task.task_id,
            command=task.submission.command,
            client=context.name,
            job=context.job_name,
            submitted_at=task.submitted_at,
            tag=task.submission.tag,
            begin_by=task.submission.begin_by(submitted),
            priority=task.submission.priority if context.runtime.manifest.lanes else None,
        )
        tracker.hold(entry)
        self._expiries.add(entry)
        tracker.labels.setdefault(entry.task_id, entry)
        # its outcome comes under its first uid, and none under this number
        self._record.withdraw(make_uid(context.incarnation, sequence))
        if self._record.is_owed(task.uid):
            tracker.settle_owed()  # it is counted as one of this session now
            tracker.accepted([entry])
        return entry

    def _was_delivered(self, uid: str) -> bool:
        """Return whether an earlier session delivered an outcome, by its checkpoint or by the journal."""
        owed, delivered = self._record.is_owed(uid), self._record.is_consumed(uid)
        if owed and delivered:
            self._context.tracker.settle_owed()  # the checkpoint did not know of it
        return delivered

    def _unknown(self, uid: str) -> Entry:
        """Return a task of which nothing but its uid is known."""
        context, (_, sequence) = self._context, split_uid(uid)
        return Entry(
            sequence=sequence,
            index=sequence,
            uid=uid,
            task_id=uid,
            command="",
            client=context.name,
            job=context.job_name,
            submitted_at=0.0,
        )

    def give_up_lost(self) -> None:
        """End the inputs that were delivered to an earlier session, and of which no message is there."""
        now = self._clock()
        # a session that stood still may have lost the mailbox meanwhile, and does not know it yet
        self._patience -= min(now - self._looked_at, _LOOK)
        self._looked_at = now
        if self._patience > 0:
            return
        self._patience = math.inf
        for entry in list(self._mail.known.values()):
            if not entry.done and self._was_delivered(entry.uid):
                entry.learn(lost_result(entry))
                self._tell_ended(entry)
