"""Sessions in the model: the real tracker, packing, checkpoint and documents, with a thin shell around them.

A message of tasks is made once and sent again unchanged. Closing sends what was submitted, saves what was
read, and lets go; what is unread stays for the next holder of the mailbox.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from batchflow.errors import BlobConflict, BlobNotFound, ServiceError
from batchflow.local import queues as core
from batchflow.model import Status
from batchflow.protocol import wire
from batchflow.protocol.dead_letters import read_tasks, reason_of, resent_id
from batchflow.protocol.documents import Cancellation, Presence
from batchflow.protocol.durations import Durations
from batchflow.protocol.layout import arguments_blob, cancellation_blob, session_blob
from batchflow.protocol.packing import PackingPolicy
from batchflow.protocol.wire import Reference, ResultItem, TaskItem
from batchflow.sessions.cancellation import KEPT, intervals
from batchflow.sessions.records.tracker import Entry, Tracker, cancelled_result
from tests.model import history
from tests.model.cloud import as_delivery
from tests.model.mailbox import Mailbox, TakenOver
from tests.model.workflows import Workflow
from tests.model.world import Backoff, Call, Process, Steps, StepsTo, Wait, sleep

if TYPE_CHECKING:
    from tests.model.agents import Work
    from tests.model.clients import Plan, SessionOwner

CONFIRMATION: Final = 5.0
PRESENCE_INTERVAL: Final = 5.0
CLOSE_TIMEOUT: Final = 10.0
_LOOK_EVERY: Final = 30.0
"""Seconds between two looks into the dead letters."""
_OUTBOX: Final = 100
_MESSAGES: Final = 2
"""Of one send."""


class Session(Process):
    """One life of a session."""

    def __init__(self, program: SessionOwner, incarnation: str) -> None:
        super().__init__(program.world, incarnation)
        self.program = program
        self.plan: Plan = program.plan
        self.mailbox_id = wire.mailbox_id(self.plan.job, self.plan.name)
        self.presence_blob = session_blob(self.plan.job, self.plan.name)
        self.journal = program.journal
        self.tracker = Tracker()
        self.in_flight: list[Entry] = []
        """What is being sent."""
        self.shown = 0
        self.opened = False
        self.closing = False
        self.mailbox = Mailbox(self)
        self.cancelling = Cancelling(self)
        self.workflow = Workflow(self) if self.plan.graph else None
        self._policy = PackingPolicy(durations=Durations({"work.py": 0.001} if self.plan.known_short else {}))
        self._messages = itertools.count(1)
        self.spawn(self._guarded(self._open()))

    @property
    def quiet(self) -> bool:
        """Whether nothing is left to do."""
        tracker = self.tracker
        if self.workflow is not None and not self.workflow.quiet:
            return False
        return self.opened and not (len(tracker) or tracker.unclaimed) and self.mailbox.quiet

    @property
    def passed(self) -> int:
        """Every task with a lower sequence number is accepted, or never sent."""
        return min((*(entry.sequence for entry in self.in_flight), self.tracker.next_unsent()))

    def cut(self) -> None:
        super().cut()
        self.mailbox.let_go()

    def killed(self) -> None:
        self.world.note(history.Gone(self.now, self.name))
        self.mailbox.let_go()

    def _guarded(self, steps: Steps) -> Steps:
        """End the session when another one holds its mailbox."""
        try:
            yield from steps
        except TakenOver:
            self.closing = True
            self.world.kill(self)

    def _open(self) -> Steps:
        yield from self.cancelling.open()
        yield from self.mailbox.open()
        self.opened = True
        journalled = self.journal is not None
        self.world.note(history.Opened(self.now, self.mailbox_id, self.name, journalled))
        mailbox = self.mailbox
        for service in (
            self._submit(),
            self._send(),
            mailbox.keep(),
            mailbox.settle(),
            self._beat(),
            self._read(),
        ):
            self.spawn(service)
        self.spawn(self._handle_dead_letters())
        if self.workflow is not None:
            self.spawn(self.workflow.work())
            self.spawn(self.workflow.keep())
        self.spawn(self._guarded(self._receive()))

    def _receive(self) -> Steps:
        yield from self.mailbox.load()
        if self.workflow is not None:
            yield from self.workflow.restore()
        yield from self.mailbox.receive()

    def _beat(self) -> Steps:
        """Tell who holds the mailbox."""
        while True:
            if self.mailbox.holder is not None:
                with suppress(ServiceError):
                    yield Call(self._tell_presence)
            yield sleep(self, PRESENCE_INTERVAL)

    def _tell_presence(self) -> None:
        presence = Presence("holder", self.name, self.now, PRESENCE_INTERVAL)
        self.world.cloud.blobs.put(self.presence_blob, presence)

    def resolve(
        self,
        entry: Entry,
        outcome: ResultItem,
        *,
        expect_message: Callable[[Entry], None] | None = None,
    ) -> bool:
        """Give a task an outcome of the session's own; a duplicate changes nothing."""
        if not self.tracker.resolve(entry, outcome):
            return False
        self.world.note(history.Finished(self.now, entry.uid, f"{outcome.status.value} {outcome.kind}"))
        if expect_message is not None:
            expect_message(entry)
        elif self.outlives(entry):
            assert self.workflow is not None
            self.workflow.keeper.owe(entry)
        else:
            self.mailbox.record.withdraw(entry.uid)
        self.resolved(entry)
        return True

    def outlives(self, entry: Entry) -> bool:
        """Whether a later session may go on with a task that the broker does not have."""
        return self.workflow is not None and self.workflow.keeper.keeps(entry)

    def resolved(self, entry: Entry) -> None:
        """Its arguments are needed no longer, and others may begin."""
        self.ended(entry)
        if entry.arguments_blob is not None:
            self.spawn(self.drop_blob(entry.arguments_blob))

    def ended(self, entry: Entry) -> None:
        """Let those go on that wait for it."""
        if self.workflow is not None:
            self.workflow.dependents.ended(entry)

    def drop_blob(self, blob: str) -> Steps:
        """Once: what is not deleted is swept some day."""
        try:
            yield Call(lambda: self.world.cloud.blobs.delete(blob))
        except ServiceError:
            return

    # Tasks

    def _submit(self) -> Steps:
        program, works = self.program, self.plan.works
        while program.next < len(works):
            yield Wait(self._has_room)
            while program.next < len(works) and self._has_room():
                place = program.next
                program.next += 1
                yield from self._submit_one(place, works[place])

    def _has_room(self) -> bool:
        return len(self.tracker) < self.plan.window and self.has_outbox_room()

    def has_outbox_room(self) -> bool:
        return self.tracker.sending < _OUTBOX

    def _submit_one(self, place: int, work: Work) -> Steps:
        takes: tuple[Entry, ...] = ()
        follows: tuple[Entry, ...] = ()
        if self.workflow is not None:
            takes, follows = self.workflow.inputs(work.inputs), self.workflow.inputs(work.after)
        waits = bool(takes or follows)
        arguments: list[object] | Reference = work.arguments()
        if work.large_arguments:
            arguments = yield from self._store_arguments(work, place)
        sequence = self.tracker.next_sequence()
        uid = wire.make_uid(self.name, sequence)
        item = TaskItem(
            client=self.plan.name,
            job=self.plan.job,
            task_id=uid,
            command="work.py",
            params=arguments,
            uid=uid,
            bundle="bundle",
            submitted_at=self.now,
        )
        entry = Entry(
            sequence=sequence,
            index=place,
            uid=item.uid,
            task_id=item.task_id,
            command=item.command,
            client=item.client,
            job=item.job,
            submitted_at=self.now,
            item=None if waits else wire.encode(item),
            arguments_blob=arguments.blob if isinstance(arguments, Reference) else None,
        )
        inputs = [each.uid for each in takes] if waits else None
        after = [each.uid for each in follows] if waits else None
        self.world.note(
            history.Submitted(
                self.now,
                self.mailbox_id,
                self.name,
                uid,
                self.plan.outcomes(place),
                inputs,
                after,
                work.passes,
            )
        )
        if waits and self.workflow is not None:
            self.workflow.hold(entry, work)
        else:
            self.tracker.add(entry)
        if self.workflow is not None:
            self.workflow.entries[place] = entry
        if place in self.plan.cancels:
            self.spawn(self.cancelling.cancel(entry))

    def _store_arguments(self, work: Work, place: int) -> StepsTo[Reference]:
        blob = arguments_blob(self.plan.job, self.plan.name, f"{self.name}-{place}")
        backoff = Backoff()
        while True:
            try:
                yield Call(lambda: self.world.cloud.blobs.put(blob, work.arguments()))
            except ServiceError:
                yield backoff.wait(self)
            else:
                return Reference(blob, 1)

    def _send(self) -> Steps:
        tracker = self.tracker
        while True:
            yield Wait(lambda: bool(tracker.outbox))
            drafts: list[core.Draft] = []
            sent: list[Entry] = []
            for _ in range(_MESSAGES):
                entries, items = tracker.take(self._policy.pack(tracker.sending))
                if entries:
                    sent += entries
                    self.in_flight = sent
                    message_id = f"{self.name}-{next(self._messages)}"
                    drafts.append(core.Draft(wire.join("tasks", items), message_id))
            if drafts:
                yield from self._send_until_accepted(drafts)
            tracker.accepted(sent)
            self.in_flight = []
            for entry in sent:
                if self.workflow is not None:
                    self.workflow.keeper.sent(entry)
                self.world.note(history.Accepted(self.now, entry.uid))

    def _send_until_accepted(self, drafts: list[core.Draft]) -> Steps:
        backoff = Backoff()
        while True:
            try:
                yield Call(lambda: self.world.cloud.send_tasks(drafts, self.now))
            except ServiceError:
                yield backoff.wait(self)
            else:
                return

    def _handle_dead_letters(self) -> Steps:
        """Turn dead-lettered tasks into results, and send dead-lettered results again."""
        cloud = self.world.cloud
        while True:
            yield sleep(self, _LOOK_EVERY)
            yield from self._look(cloud.dead_tasks, self._failure_results)
            yield from self._look(cloud.dead_results, self._send_again)

    def _look(self, queue: core.Queue, drafts: Callable[[core.Message], Iterable[core.Draft]]) -> Steps:
        cloud = self.world.cloud
        while queue.has_ready():
            try:
                for message in (yield Call(lambda: queue.receive(1, self.now, self), receives=True)):
                    for draft in drafts(message):
                        yield Call(partial(cloud.send_result, draft, self.now))
                    yield Call(partial(queue.complete, message.lock_token, self.now))
            except ServiceError:
                return

    def _failure_results(self, message: core.Message) -> Iterator[core.Draft]:
        for task in read_tasks(message.body):
            outcome = reason_of(as_delivery(message), task, self.now).outcome(task)
            status = f"{outcome.status.value} {outcome.kind}"
            self.world.note(history.Finished(self.now, task.uid, status))
            body = wire.join("results", [wire.encode(outcome)])
            yield core.Draft(body, f"dead-{task.uid}-{task.attempt}-{task.hop}", task.mailbox)

    def _send_again(self, message: core.Message) -> Iterator[core.Draft]:
        yield core.Draft(message.body, resent_id(self.name, message.number), message.session_id)

    # The program

    def _read(self) -> Steps:
        """The program's loop over results; it closes the session where the plan says so."""
        tracker, plan = self.tracker, self.plan
        while True:
            yield Wait(lambda: bool(tracker.unclaimed))
            if plan.pause:
                yield sleep(self, plan.pause)
            while (entry := tracker.next_unclaimed()) is not None:
                self._show(entry)
                if self.shown == plan.closes_after:
                    self.spawn(self.close())
                    return

    def _show(self, entry: Entry) -> None:
        assert entry.outcome is not None
        outcome = entry.outcome if isinstance(entry.outcome, ResultItem) else entry.outcome.read()
        self.shown += 1
        status, answer = outcome.status.value, outcome.value
        if outcome.kind is not None:
            status += f" {outcome.kind}"
        assert answer is None or isinstance(answer, str)
        shown = history.Shown(
            self.now,
            self.mailbox_id,
            self.name,
            outcome.uid,
            status,
            answer,
            entry.repeated,
            _named(outcome),
        )
        self.world.note(shown)

    # Closing

    def close(self) -> Steps:
        """Send what was submitted, save what was read, let go. It has a deadline."""
        self.closing = True
        tracker, deadline = self.tracker, self.now + CLOSE_TIMEOUT / 2
        yield Wait(lambda: not tracker.sending, deadline)
        if self.workflow is not None:
            yield from self.workflow.close(deadline)
        self._end_others()
        yield from self.mailbox.settle_once()
        saved = yield from self.mailbox.save(last=True)
        if self.workflow is not None:
            self.workflow.keeper.delete_documents()
            yield Wait(lambda: len(self.strands) == 1, self.now + CLOSE_TIMEOUT / 2)
        yield from self.cancelling.release()
        yield from self.drop_blob(self.presence_blob)
        holder, self.mailbox.state.attachment = self.mailbox.holder, None
        if holder is not None:
            self.world.cloud.release_mailbox(self.mailbox_id, holder, self.now)
        if saved:
            self.world.note(history.Closed(self.now, self.name))
        self.world.kill(self)

    def _end_others(self) -> None:
        """Nothing else of it goes on."""
        current = self.world.current
        for strand in [strand for strand in self.strands if strand is not current]:
            self.world.end(strand)


def _named(outcome: ResultItem) -> str | None:
    """The task that an outcome gives as its reason."""
    found = re.match(r"it waited for task (\S+) ", outcome.error or "")
    return None if found is None else found[1]


class Cancelling:
    """The session's cancellation document."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._blob = cancellation_blob(session.plan.job, session.plan.name)
        self._earlier = Cancellation()
        self._version = 0
        self._made = False
        self._wanted: dict[int, Entry] = {}
        self._unconfirmed: set[int] = set()
        self._written: set[int] = set()
        self._writing = False

    def open(self) -> Steps:
        """Take the document over, or make it."""
        backoff = Backoff()
        while True:
            try:
                yield from self._load()
            except ServiceError:
                yield backoff.wait(self._session)
            else:
                return

    def _load(self) -> Steps:
        session, blobs = self._session, self._session.world.cloud.blobs
        try:
            found, version = yield Call(lambda: blobs.get(self._blob))
        except BlobNotFound:
            self._version = yield Call(lambda: blobs.put(self._blob, Cancellation()))
            self._made = True
            return
        others = {name: rows for name, rows in found.intervals.items() if name != session.name}
        self._earlier, self._version = replace(found, intervals=others), version

    def cancel(self, entry: Entry) -> Steps:
        session = self._session
        if session.plan.cancel_after:
            yield sleep(session, session.plan.cancel_after)
        if entry.done:
            return
        if entry.item is not None or entry.status is Status.WAITING:
            outlives = session.outlives(entry)
            session.resolve(entry, cancelled_result(entry, "cancelled before it was sent"))
            if not outlives:
                return
        self._wanted[entry.sequence] = entry
        while self._writing:
            yield Wait(lambda: not self._writing)
        if entry.sequence not in self._written:
            self._writing = True
            yield from self._write()
            self._writing = False
        session.world.note(history.Cancelled(session.now, entry.uid))
        if entry.done:
            return
        yield sleep(session, CONFIRMATION)
        if not entry.done:
            self._unconfirmed.add(entry.sequence)
            outcome = cancelled_result(entry, "no agent confirmed it in time")
            session.resolve(entry, outcome, expect_message=session.mailbox.state.expect_message)

    def was_cancelled(self, incarnation: str, sequence: int) -> bool:
        return self._earlier.covers(incarnation, sequence)

    def confirmed(self, sequence: int) -> None:
        self._unconfirmed.discard(sequence)

    def _write(self) -> Steps:
        blobs = self._session.world.cloud.blobs
        confirmed = [
            number
            for number, entry in self._wanted.items()
            if entry.done and not entry.is_unsent and number not in self._unconfirmed
        ]
        for number in confirmed[:-KEPT]:
            del self._wanted[number]
        numbers = sorted(self._wanted)
        own = {self._session.name: tuple(intervals(numbers))} if numbers else {}
        backoff = Backoff()
        while True:
            document = replace(self._earlier, intervals={**self._earlier.intervals, **own})
            write = partial(blobs.put, self._blob, document, self._version)
            try:
                self._version = yield Call(write)
            except (BlobConflict, BlobNotFound):
                yield from self.open()
            except ServiceError:
                yield backoff.wait(self._session)
            else:
                break
        self._written = set(numbers)

    def release(self) -> Steps:
        """Remove it, if no task can be queued that needs it."""
        may_be_sent = any(entry.is_unsent for entry in self._wanted.values())
        if self._made and not (len(self._session.tracker) or self._unconfirmed or may_be_sent):
            yield from self._session.drop_blob(self._blob)
