"""Programs and their sessions in the model: the real tracker, packing and ledger, with a thin shell.

A program submits its tasks through a session and reads what comes. When its session is killed it opens
another one by the same name, which takes the mailbox over and goes on with what was not submitted yet. The
shell's rules: a message of tasks is made once and sent again unchanged; a message of results is completed
only when all in it was shown and a ledger that says so is saved; duplicates are known by uid.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from batchflow import wire
from batchflow.control import Cancellation
from batchflow.errors import BrokerError, LeaseLost
from batchflow.ledger import Ledger
from batchflow.local import queues as core
from batchflow.outcomes import cancelled
from batchflow.packing import PackingPolicy
from batchflow.tracker import Entry, Receipt, Tracker
from batchflow.wire import ResultItem, TaskItem
from tests.model import history
from tests.model.agents import Work
from tests.model.world import NEVER, NOW, Backoff, Call, Process, Steps, Wait, World, sleep

_CONFIRMATION = 5.0
_SAVE_EVERY = 1.0
_PREFETCH = 10


@dataclass(frozen=True, slots=True)
class Plan:
    """What a program does."""

    name: str
    works: Sequence[Work]
    job: str = "job"
    window: int = 1000
    """Tasks without an outcome at a time."""
    cancels: frozenset[int] = frozenset()
    """The places of the tasks that are cancelled as soon as they were submitted."""
    known_short: bool = False
    """Whether tasks are known to be short, and share messages from the start."""


class Program(Process):
    """Opens a session, and another one when that is killed."""

    mortal = False

    def __init__(self, world: World, plan: Plan) -> None:
        super().__init__(world, plan.name)
        self.plan = plan
        self.next = 0
        """The place of the task that is submitted next."""
        self.session: Session | None = None
        self._numbers = itertools.count(1)
        self.spawn(self._keep_open())

    @property
    def done(self) -> bool:
        """Whether everything was submitted and nothing is left to do."""
        return self.next == len(self.plan.works) and self.session is not None and self.session.quiet

    def _keep_open(self) -> Steps:
        while True:
            self.session = session = Session(self, f"{self.name}.{next(self._numbers)}")
            yield Wait(session.until_gone)
            yield sleep(self, 1.0)


class _Holder:
    """What the broker knows a session's link by."""


class Session(Process):
    """One life of a session."""

    def __init__(self, program: Program, incarnation: str) -> None:
        super().__init__(program.world, incarnation)
        self.program = program
        self.plan = program.plan
        self.mailbox = wire.mailbox_id(self.plan.job, self.plan.name)
        self.tracker = Tracker()
        self._policy = PackingPolicy(durations={"work.py": 0.001} if self.plan.known_short else {})
        self._ledger = Ledger()
        self._holder: _Holder | None = None
        self._pending: dict[str, Entry] = {}
        """By uid: what came by mail and was not shown yet."""
        self._due: list[core.Message] = []
        self._dirty = False
        self._opened = False
        self._cancelled: set[int] = set()
        self._messages = itertools.count(1)
        self.spawn(self._open())

    @property
    def quiet(self) -> bool:
        """Whether it owes nobody anything."""
        return self._opened and not (len(self.tracker) or self.tracker.unclaimed or self._due or self._dirty)

    def cut(self) -> None:
        super().cut()
        self._let_go()

    def killed(self) -> None:
        self.world.note(history.Gone(self.now, self.name))
        self._let_go()

    def _let_go(self) -> None:
        holder, self._holder = self._holder, None
        if holder is not None:
            self.world.forget_holder(self.mailbox, holder)

    def _held(self) -> _Holder:
        if self._holder is None:
            raise core.SessionLockLost("the link is gone")
        return self._holder

    # Opening

    def _open(self) -> Steps:
        yield from self._take_mailbox()
        while True:
            try:
                state = yield Call(self._read_state)
                self._ledger = Ledger.decode(state)
                self._ledger.open(self.name)
                yield Call(self._write_state)
            except LeaseLost:
                yield from self._take_mailbox()
            except BrokerError:
                yield sleep(self, 0.5)
            else:
                break
        self._opened = True
        self.world.note(history.Opened(self.now, self.mailbox, self.name))
        for service in (self._submit, self._send, self._receive, self._keep, self._settle, self._read):
            self.spawn(service())

    def _take_mailbox(self) -> Steps:
        backoff = Backoff(0.5)
        while True:
            self._holder = _Holder()
            try:
                yield Call(self._lock_mailbox, receives=True)
            except BrokerError:
                self._holder = None
                yield backoff.wait(self)
            else:
                return

    def _lock_mailbox(self) -> None:
        self.world.results.accept_session(self.mailbox, self._held(), self.now)

    def _read_state(self) -> bytes | None:
        return self.world.results.session_state(self.mailbox, self._held(), self.now)

    def _write_state(self) -> None:
        self.world.results.set_session_state(self.mailbox, self._held(), self._ledger.encode(), self.now)

    # Tasks

    def _submit(self) -> Steps:
        program, works = self.program, self.plan.works
        while program.next < len(works):
            yield Wait(lambda: NOW if len(self.tracker) < self.plan.window else NEVER)
            while program.next < len(works) and len(self.tracker) < self.plan.window:
                self._submit_one(program.next, works[program.next])
                program.next += 1

    def _submit_one(self, place: int, work: Work) -> None:
        sequence = self.tracker.next_sequence()
        uid = wire.make_uid(self.name, sequence)
        item = TaskItem(
            client=self.plan.name,
            job=self.plan.job,
            task_id=str(place),
            command="work.py",
            params=work.arguments(),
            uid=uid,
            bundle="bundle",
            submitted_at=self.now,
        )
        entry = Entry(
            sequence=sequence,
            index=place,
            uid=uid,
            task_id=item.task_id,
            command=item.command,
            client=item.client,
            job=item.job,
            submitted_at=self.now,
            item=wire.encode(item),
        )
        self.world.note(history.Submitted(self.now, self.mailbox, self.name, uid))
        self.tracker.add(entry)
        if place in self.plan.cancels:
            self.spawn(self._cancel(entry))

    def _send(self) -> Steps:
        tracker = self.tracker
        while True:
            yield Wait(lambda: NOW if tracker.outbox else NEVER)
            entries, items = tracker.take(self._policy.pack(tracker.sending))
            if not entries:
                continue
            draft = core.Draft(wire.join("tasks", items), f"{self.name}-{next(self._messages)}")
            yield from self._send_until_accepted(draft)
            tracker.accepted(entries)
            page = self._ledger.pages[self.name]
            page.submitted = entries[-1].sequence + 1
            self._dirty = True
            for entry in entries:
                self.world.note(history.Accepted(self.now, wire.make_uid(self.name, entry.sequence)))

    def _send_until_accepted(self, draft: core.Draft) -> Steps:
        backoff = Backoff()
        while True:
            try:
                yield Call(lambda: self.world.tasks.send([draft], self.now))
            except BrokerError:
                yield backoff.wait(self)
            else:
                return

    def _cancel(self, entry: Entry) -> Steps:
        yield Wait(lambda: NOW)
        if entry.item is not None and not entry.done:
            self.tracker.resolve(entry, cancelled(entry, "cancelled before it was sent"))
            return
        self._cancelled.add(entry.sequence)
        while not entry.done:
            try:
                yield Call(self._write_cancellations)
            except BrokerError:
                yield sleep(self, 0.5)
            else:
                break
        yield sleep(self, _CONFIRMATION)
        if not entry.done:
            self.tracker.resolve(entry, cancelled(entry, "no agent confirmed it in time"))

    def _write_cancellations(self) -> None:
        intervals = tuple((sequence, sequence) for sequence in sorted(self._cancelled))
        self.world.cancellations[self.plan.job, self.plan.name] = Cancellation({self.name: intervals})

    # Mail

    def _receive(self) -> Steps:
        while True:
            yield Wait(self._receive_due)
            try:
                found = yield Call(self._fetch, receives=True)
            except LeaseLost:
                yield from self._take_mailbox()
            except BrokerError:
                yield sleep(self, 0.5)
            else:
                for message in found:
                    self._accept(message)

    def _receive_due(self) -> float:
        results = self.world.results
        lost = self._holder is None or results.session_holder(self.mailbox, self.now) is not self._holder
        return NOW if lost or results.has_ready(self.mailbox) else NEVER

    def _fetch(self) -> list[core.Message]:
        return self.world.results.receive(_PREFETCH, self.now, self._held(), session_id=self.mailbox)

    def _accept(self, message: core.Message) -> None:
        items = wire.decode(message.body)
        receipt = Receipt(lambda: self._due.append(message), len(items))
        for item in items:
            assert isinstance(item, ResultItem)
            self._deliver(item, receipt)

    def _deliver(self, item: ResultItem, receipt: Receipt) -> None:
        incarnation, sequence = wire.split_uid(item.uid)
        if self._ledger.is_consumed(incarnation, sequence):
            receipt.hand_over()
            return
        pending = self._pending.get(item.uid)
        if pending is not None:
            # It came again before it was shown: the newer message is the one whose lock may be ours.
            former, pending.receipt = pending.receipt, receipt
            if former is not None:
                former.hand_over()
            return
        if incarnation != self.name:
            self._adopt(item, sequence, receipt)
            return
        entry = self.tracker.find(sequence)
        if entry is None or not self.tracker.resolve(entry, item, receipt):
            receipt.hand_over()
            return
        self._pending[item.uid] = entry

    def _adopt(self, item: ResultItem, sequence: int, receipt: Receipt) -> None:
        """Mail for an earlier holder."""
        names = (item.uid, item.task_id, item.command, item.client, item.job)
        entry = Entry(sequence, sequence, *names, submitted_at=item.submitted_at)
        self.tracker.adopt(entry, item, receipt)
        self._pending[item.uid] = entry

    def _keep(self) -> Steps:
        while True:
            yield sleep(self, self.world.lock / 3)
            try:
                yield Call(lambda: self.world.results.renew_session(self.mailbox, self._held(), self.now))
            except BrokerError:
                continue

    def _settle(self) -> Steps:
        """Save the ledger, then complete what it covers."""
        while True:
            yield Wait(lambda: NOW if self._due or self._dirty else NEVER)
            yield sleep(self, _SAVE_EVERY)
            batch, self._due, self._dirty = self._due, [], False
            try:
                yield Call(self._write_state)
            except BrokerError:
                self._dirty = True
                self._due = batch + self._due
                continue
            for message in batch:
                yield from self._complete(message.lock_token)

    def _complete(self, token: bytes) -> Steps:
        while True:
            try:
                yield Call(lambda: self._complete_held(token))
            except LeaseLost:
                return
            except BrokerError:
                yield sleep(self, 0.5)
            else:
                return

    def _complete_held(self, token: bytes) -> None:
        self._held()
        self.world.results.complete(token, self.now)

    def _read(self) -> Steps:
        """The program's loop over results."""
        while True:
            yield Wait(lambda: NOW if self.tracker.unclaimed else NEVER)
            while (entry := self.tracker.next_unclaimed()) is not None:
                self._show(entry)

    def _show(self, entry: Entry) -> None:
        assert isinstance(entry.outcome, ResultItem)
        outcome = entry.outcome
        incarnation, sequence = wire.split_uid(outcome.uid)
        self._ledger.consume(incarnation, sequence)
        self._pending.pop(outcome.uid, None)
        self._dirty = True
        status, answer = outcome.status.value, outcome.value
        assert answer is None or isinstance(answer, str)
        self.world.note(history.Shown(self.now, self.mailbox, self.name, outcome.uid, status, answer))
