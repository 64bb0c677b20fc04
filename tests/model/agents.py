"""Nodes and their agents in the model: the real scheduler and lease book, with a shell as thin as can be.

The shell takes the real one's steps in the real one's order: a result is accepted before its message is
completed, a copy likewise; what is sent again has the same bytes and id; a slot notes what it runs before it
runs. A node is the supervisor: it starts an agent, remembers what died with it, and starts the next one.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson

from batchflow.errors import BlobNotFound, LeaseLost, ServiceError
from batchflow.local import queues as core
from batchflow.model import Status
from batchflow.protocol import wire
from batchflow.protocol.dead_letters import LOOK_INTERVAL, read_tasks
from batchflow.protocol.layout import cancellation_blob, result_blob
from node_agent.execution import results
from node_agent.execution.outcomes import Outcome, failed
from node_agent.links.dead_letters import verdict_on
from node_agent.links.lock_deadlines import LockDeadlines
from node_agent.links.task_queue import LAST_LOOK, copy_message
from node_agent.scheduling import events as to
from node_agent.scheduling.crash_history import CrashCount, after_crash
from node_agent.scheduling.scheduler import Scheduler
from tests.model import history
from tests.model.cloud import as_delivery
from tests.model.world import NEVER, Backoff, Call, Process, Steps, StepsTo, Wait, World, sleep

_RESTART = 0.25
_HEARTBEAT = 15.0
"""Seconds after which a session that waits for outcomes sees to it that agents live."""
_MOST_IN_A_PACK = 1000


@dataclass(frozen=True, slots=True)
class Work:
    """What a task does: it travels as its arguments."""

    duration: float = 0.01
    """Seconds."""
    failures: int = 0
    """So many attempts ask to be tried again."""
    crashes_agent: bool = False
    """Kills its agent."""
    large_arguments: bool = False
    """They travel by reference."""
    large_result: bool = False
    fails: bool = False
    """For good."""
    values: Sequence[str] | None = None
    """What it got of its inputs; None: it takes none."""
    inputs: tuple[int, ...] = ()
    """The places of the tasks that it takes the values of. They are not sent, nor is what follows."""
    after: tuple[int, ...] = ()
    """The places of the tasks that it waits for otherwise."""
    passes: bool = False
    """Whether it runs after those that failed, too."""

    @property
    def waits(self) -> bool:
        return bool(self.inputs or self.after)

    def arguments(self) -> list[Any]:
        """What is sent, without the values."""
        large = self.large_arguments, self.large_result
        return [self.duration, self.failures, self.crashes_agent, *large, self.fails]


class Node(Process):
    """Keeps one agent alive; outlives it."""

    mortal = False

    def __init__(self, world: World, name: str, slots: int, idle_exit: float | None, begins: float) -> None:
        super().__init__(world, name)
        self.slots = slots
        self.idle_exit = idle_exit
        self.running: list[list[str]] = [[] for _ in range(slots)]
        self.crashes: dict[str, CrashCount] = {}
        self.agent: Agent | None = None
        self._numbers = itertools.count(1)
        self.spawn(self._supervise(begins))

    @property
    def quiet(self) -> bool:
        """Whether nothing is on its way."""
        return self.agent is None or not self.agent.alive or self.agent.idle

    def drain_after(self, seconds: float) -> Steps:
        """Tell the agent that lives then to stop."""
        yield sleep(self, seconds)
        if self.agent is not None and self.agent.alive:
            self.agent.drain(2.0)
            self.agent.changed.give()

    def _supervise(self, begins: float) -> Steps:
        tasks = self.world.cloud.tasks
        yield sleep(self, begins)
        while True:
            self.agent = agent = Agent(self, f"{self.name}-{next(self._numbers)}")
            yield agent.end()
            if not agent.exited:
                uids = [uid for slot in self.running for uid in slot]
                self.crashes = after_crash(self.crashes, uids, self.now) if uids else self.crashes
            self.running = [[] for _ in range(self.slots)]
            yield sleep(self, _RESTART)
            while not (tasks.has_ready() or self.world.owed()):
                yield Wait(tasks.has_ready, self.now + _HEARTBEAT, self.world.cloud.tasks_come)


@dataclass(slots=True, eq=False)
class _Assignment:
    tasks: tuple[int, ...]
    started: bool = False
    unbegun: deque[int] = field(default_factory=deque)
    """What it was told to run and has not begun."""
    start_by: dict[int, float] = field(default_factory=dict)
    """By task: when it is too late to begin it."""
    stopped: bool = False

    def give(self, tasks: tuple[int, ...], start_by: float) -> None:
        """Run these, after those that are here."""
        self.unbegun += tasks
        self.start_by.update(dict.fromkeys(tasks, start_by))


@dataclass(slots=True)
class _Post:
    """Results that wait for one mailbox."""

    results: deque[tuple[int, bytes]] = field(default_factory=deque)


class Agent(Process):
    """One life of an agent."""

    def __init__(self, node: Node, incarnation: str) -> None:
        super().__init__(node.world, incarnation)
        self.node = node
        self.exited = False
        self.scheduler = Scheduler(node.slots, node.name, node.idle_exit, self.now, dict(node.crashes))
        self._leases: LockDeadlines[int] = LockDeadlines()
        self._held: dict[int, bytes] = {}
        self._posts: dict[str, _Post] = {}
        self._copies: deque[to.HandBack] = deque()
        self._slots: list[_Assignment | None] = [None] * node.slots
        self._events: deque[to.Event] = deque()
        self._wanted = False
        self._look_until: float | None = None
        self._deliveries = itertools.count(1)
        self._packs = itertools.count(1)
        self._failing: set[int] = set()
        """Dead letters whose results are under way, by the numbers that these have."""
        services = (
            self._receive,
            self._renewals,
            self._results,
            self._copy,
            self._tick,
            self._handle_dead_letters,
        )
        for service in services:
            self.spawn(service())
        for index in range(node.slots):
            self.spawn(self._slot(index))
        self.feed(to.Tick())

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way."""
        return not (self.scheduler.held or self._held or self._posts or self._copies or self._failing)

    def feed(self, event: to.Event) -> None:
        """Give the scheduler an event, and do what it says. What is fed meanwhile comes after that."""
        self._events.append(event)
        if len(self._events) > 1:
            return
        while self._events:
            for command in self.scheduler.handle(self._events[0], self.now):
                self._obey(command)
            self._events.popleft()

    def drain(self, grace: float) -> None:
        self.feed(to.Drain(grace))

    def _obey(self, command: to.Command) -> None:
        match command:
            case to.Prepare(slot, tasks):
                self._slots[slot] = _Assignment(tasks)
            case to.Start(slot, tasks):
                if (assignment := self._slots[slot]) is not None:
                    assignment.give(tasks, self.scheduler.settlement.start_by(tasks))
                    assignment.started = True
            case to.Follow(slot, tasks):
                following = self._slots[slot]
                assert following is not None
                following.give(tasks, self.scheduler.settlement.start_by(tasks))
                self.node.running[slot] = self.node.running[slot] + [
                    self.scheduler.item(number).uid for number in tasks
                ]
            case to.Stop(slot):
                if (assignment := self._slots[slot]) is not None:
                    assignment.stopped = True
            case to.Recall(slot):
                self._recall(slot)
            case to.SendResult(task, verdict, outcome):
                self._send_result(task, verdict, outcome)
            case to.Complete(delivery):
                self.spawn(self._complete(delivery))
            case to.HandBack():
                self._copies.append(command)
            case to.Pull() | to.Hold():
                self._wanted, self._look_until = isinstance(command, to.Pull), None
            case to.ReadCancellation(session):
                self.spawn(self._read_cancellation(session))
            case to.Leave(delivery):
                self._forget(delivery)
            case to.ForgetCrashes(uid):
                self.node.crashes.pop(uid, None)
            case to.LastLook():
                self.spawn(self._look_once_more())
            case to.Exit():
                self.exited = True
                self.world.kill(self)
            case to.Announce():
                pass

    def _recall(self, index: int) -> None:
        tasks: tuple[int, ...] = ()
        if (assignment := self._slots[index]) is not None:
            tasks = tuple(assignment.unbegun)
            assignment.unbegun.clear()
            uids = {self.scheduler.item(number).uid for number in tasks}
            self.node.running[index] = [uid for uid in self.node.running[index] if uid not in uids]
        self.feed(to.Recalled(index, tasks))

    # Messages

    def _receive(self) -> Steps:
        backoff = Backoff()
        tasks, come = self.world.cloud.tasks, self.world.cloud.tasks_come
        while True:
            yield Wait(self._may_receive, self._look_ends, come)
            if not self._wanted:
                continue
            if self._look_until is not None and not tasks.has_ready():
                self._wanted, self._look_until = False, None
                self.feed(to.NothingLeft())
                continue
            try:
                found = yield Call(lambda: tasks.receive(1, self.now, self), receives=True)
            except ServiceError:
                yield backoff.wait(self)
                continue
            backoff = Backoff()
            for message in found:
                self._arrived(message)

    def _look_once_more(self) -> Steps:
        """Say that we are going before looking: who does not see it yet still finds us looking."""
        with suppress(ServiceError):
            yield Call(lambda: None)
        if self.scheduler.state == "exiting":
            self._wanted, self._look_until = True, self.now + LAST_LOOK

    def _may_receive(self) -> bool:
        return self._wanted and self.world.cloud.tasks.has_ready()

    def _look_ends(self) -> float:
        return NEVER if self._look_until is None or not self._wanted else self._look_until

    def _arrived(self, message: core.Message) -> None:
        if self.scheduler.state == "exiting":
            self._wanted, self._look_until = False, None
        number = next(self._deliveries)
        self._held[number] = message.lock_token
        self._leases.add(number, self.world.cloud.lock, self.now)
        age = max(0.0, self.now - message.enqueued_at)
        self.feed(to.Arrived(number, read_tasks(message.body), message.delivery_count > 0, age))

    def _renewals(self) -> Steps:
        while True:
            yield Wait(due=self._renewal_due)
            for delivery in self._leases.lapsed(self.now):
                self.feed(to.LeaseGone(delivery))
            for delivery in self._leases.due(self.now):
                self.spawn(self._renew(delivery))

    def _renewal_due(self) -> float:
        deadline = self._leases.next_deadline()
        return NEVER if deadline is None else deadline

    def _renew(self, delivery: int) -> Steps:
        if delivery not in self._leases:
            return
        asked_at = self.now
        token = self._held[delivery]
        try:
            yield Call(lambda: self.world.cloud.tasks.renew(token, self.now))
        except LeaseLost:
            if delivery in self._leases:
                self._leases.remove(delivery)
                self.feed(to.LeaseGone(delivery))
        except ServiceError:
            self._leases.failed(delivery, self.now)
        else:
            self._leases.renewed(delivery, asked_at)

    def _complete(self, delivery: int) -> Steps:
        token = self._held[delivery]
        backoff = Backoff()
        done = False
        while delivery in self._leases:
            try:
                yield Call(lambda: self.world.cloud.tasks.complete(token, self.now))
            except LeaseLost:
                break
            except ServiceError:
                yield backoff.wait(self)
            else:
                done = True
                break
        self._forget(delivery)
        self.feed(to.Completed(delivery) if done else to.LeaseGone(delivery))

    def _forget(self, delivery: int) -> None:
        self._leases.remove(delivery)
        self._held.pop(delivery, None)

    # Results and copies

    def _send_result(self, task: int, verdict: to.Verdict | None, outcome: object) -> None:
        item = self.scheduler.item(task)
        if verdict is not None:
            encoded = results.encode_verdict(item, verdict, self.node.name, self.now)
            ended: to.Verdict | Outcome = verdict
        else:
            assert isinstance(outcome, Outcome)
            encoded = results.encode_outcome(item, outcome, self.node.name)
            ended = outcome
        self._note_finished(item, ended)
        self._post(task, item.mailbox, encoded)

    def _note_finished(self, item: wire.TaskItem, ended: to.Verdict | Outcome) -> None:
        status = f"{ended.status.value} {ended.kind}" if ended.kind else ended.status.value
        self.world.note(history.Finished(self.now, item.uid, status))

    def _post(self, number: int, mailbox: str, encoded: bytes) -> None:
        self._posts.setdefault(mailbox, _Post()).results.append((number, encoded))

    def _results(self) -> Steps:
        while True:
            yield Wait(lambda: bool(self._posts))
            mailbox = next(iter(self._posts))
            line = self._posts[mailbox].results
            taken = [line.popleft() for _ in range(min(len(line), _MOST_IN_A_PACK))]
            if not line:
                del self._posts[mailbox]
            body = wire.join("results", [item for _, item in taken])
            yield from self._deliver(core.Draft(body, f"{self.name}-{next(self._packs)}", mailbox))
            self._failing.difference_update(task for task, _ in taken)
            own = [task for task, _ in taken if task >= 0]
            if own:
                self.feed(to.ResultsAccepted(own))

    def _deliver(self, draft: core.Draft) -> Steps:
        """The same bytes under the same id, until the broker has them."""
        backoff = Backoff()
        blocked = False
        while True:
            try:
                yield Call(lambda: self.world.cloud.send_result(draft, self.now))
            except ServiceError:
                if not blocked:
                    self.feed(to.Blocked(True))
                blocked = True
                yield backoff.wait(self)
            else:
                if blocked:
                    self.feed(to.Blocked(False))
                return

    def _copy(self) -> Steps:
        while True:
            yield Wait(lambda: bool(self._copies))
            command = self._copies[0]
            item = self.scheduler.item(command.task)
            copy = wire.handed_back(
                item, attempt=command.attempt, history=command.history, expires=command.expires
            )
            message = copy_message(copy)
            at = self.now + command.delay if command.delay > 0 else None
            yield from self._send_copy(core.Draft(message.body, message.message_id, scheduled_for=at))
            self._copies.popleft()
            self.feed(to.CopyAccepted(command.task))

    def _send_copy(self, draft: core.Draft) -> Steps:
        backoff = Backoff()
        while True:
            try:
                yield Call(lambda: self.world.cloud.send_tasks([draft], self.now))
            except ServiceError:
                yield backoff.wait(self)
            else:
                return

    # Dead letters

    def _handle_dead_letters(self) -> Steps:
        """Turn dead-lettered tasks into results. It looks before the agent idles out."""
        dead_tasks = self.world.cloud.dead_tasks
        numbers = itertools.count(-1, -1)
        interval = min(LOOK_INTERVAL, (self.node.idle_exit or math.inf) / 2)
        while True:
            yield sleep(self, interval)
            while dead_tasks.has_ready():
                try:
                    found = yield Call(lambda: dead_tasks.receive(1, self.now, self), receives=True)
                    for message in found:
                        yield from self._fail_dead_letter(message, numbers)
                except ServiceError:
                    break

    def _fail_dead_letter(self, message: core.Message, numbers: Iterator[int]) -> Steps:
        awaited = set()
        for item in read_tasks(message.body):
            number = next(numbers)
            awaited.add(number)
            verdict = verdict_on(as_delivery(message), item, self.now)
            encoded = results.encode_verdict(item, verdict, self.node.name, self.now)
            self._note_finished(item, verdict)
            self._post(number, item.mailbox, encoded)
        self._failing |= awaited
        yield Wait(lambda: not awaited & self._failing)
        yield Call(lambda: self.world.cloud.dead_tasks.complete(message.lock_token, self.now))

    # Slots

    def _slot(self, index: int) -> Steps:
        while True:
            yield Wait(lambda: self._slots[index] is not None)
            assignment = self._slots[index]
            assert assignment is not None
            yield from self._work(index, assignment)
            if not self.alive:
                return
            self.node.running[index] = []
            self._slots[index] = None
            self.feed(to.Freed(index))

    def _work(self, index: int, assignment: _Assignment) -> Steps:
        if assignment.stopped:
            return
        works = yield from self._prepare(assignment)
        if assignment.stopped:
            return
        self.feed(to.Prepared(index))
        yield Wait(lambda: assignment.stopped or assignment.started)
        if assignment.stopped:
            return
        self.node.running[index] = [self.scheduler.item(number).uid for number in assignment.unbegun]
        while assignment.unbegun:
            number = assignment.unbegun[0]
            if self.now > assignment.start_by[number]:
                return  # it is late: what is left goes back with the slot
            assignment.unbegun.popleft()
            yield from self._run(number, works.get(number), assignment)
            if not self.alive or assignment.stopped:
                return

    def _run(self, number: int, work: Work | None, assignment: _Assignment) -> Steps:
        """One task; `work`: None for one that came while others ran."""
        item = self.scheduler.item(number)
        if work is None:
            assert isinstance(item.params, list)
            work = Work(*item.params)
        self.world.note(history.Started(self.now, item.uid, work.values))
        yield Wait(partial(_is_stopped, assignment), self.now + work.duration)
        if not assignment.stopped:
            yield from self._end(number, item, work, assignment)

    def _prepare(self, assignment: _Assignment) -> StepsTo[dict[int, Work]]:
        """What the tasks do. One whose arguments are gone ends here."""
        works = {}
        for number in assignment.tasks:
            item = self.scheduler.item(number)
            arguments = item.params if isinstance(item.params, list) else None
            if isinstance(item.params, wire.Reference):
                arguments = yield from self._fetch(item.params.blob, assignment)
            if assignment.stopped:
                break
            if arguments is None:
                self._over(number, failed("TaskRejected", "its arguments are gone"), 0.0)
            else:
                works[number] = Work(*arguments)
        return works

    def _fetch(self, blob: str, assignment: _Assignment) -> StepsTo[list[Any] | None]:
        backoff = Backoff(0.5)
        while not assignment.stopped:
            try:
                found, _ = yield Call(lambda: self.world.cloud.blobs.get(blob))
            except BlobNotFound:
                return None
            except ServiceError:
                yield backoff.wait(self)
            else:
                arguments: list[Any] = found
                return arguments
        return None

    def _end(self, number: int, item: wire.TaskItem, work: Work, assignment: _Assignment) -> Steps:
        """The task's code is over, one way or another."""
        if work.crashes_agent:
            self.world.kill(self)
            return
        began = self.now - work.duration
        if work.fails:
            outcome = Outcome(Status.FAILED, error="no", kind="TaskFailed")
            outcome.started_at = began
            self._over(number, outcome, work.duration)
        elif item.attempt <= work.failures:
            outcome = Outcome(Status.FAILED, error="again", kind="TaskFailed", request="retry", delay=1.0)
            outcome.started_at = began
            self._over(number, outcome, work.duration)
        elif self.world.child_dies():
            outcome = Outcome(Status.FAILED, error="killed", kind="WorkerDied", exit_code=-9)
            outcome.started_at = began
            self._over(number, outcome, work.duration)
        else:
            value = orjson.dumps(item.uid)
            outcome = Outcome(Status.SUCCEEDED, value, started_at=began)
            if work.large_result:
                outcome.value = yield from self._store(item, value, assignment)
                if assignment.stopped:
                    return
            self._over(number, outcome, work.duration)

    def _store(self, item: wire.TaskItem, value: bytes, assignment: _Assignment) -> StepsTo[wire.Reference]:
        name = result_blob(item.job, item.client, item.uid, item.attempt, self.name)
        backoff = Backoff(0.5)
        while not assignment.stopped:
            try:
                yield Call(lambda: self.world.cloud.blobs.put(name, value))
            except ServiceError:
                yield backoff.wait(self)
            else:
                break
        return wire.Reference(name, len(value))

    def _over(self, number: int, outcome: Outcome, duration: float) -> None:
        failure = results.failure(outcome)
        self.feed(to.Ended(number, failure, outcome.error, self.now, duration, 0.5, outcome))

    # Time

    def _tick(self) -> Steps:
        while True:
            yield Wait(due=self._tick_due)
            self.feed(to.Tick())

    def _tick_due(self) -> float:
        deadline = self.scheduler.next_deadline()
        return NEVER if deadline is None else deadline

    def _read_cancellation(self, session: to.Session) -> Steps:
        asked_at = self.now
        try:
            document, _ = yield Call(lambda: self.world.cloud.blobs.get(cancellation_blob(*session)))
        except BlobNotFound:
            self.feed(to.CancellationRead(session, None, asked_at))
        except ServiceError:
            self.feed(to.CancellationUnread(session))
        else:
            self.feed(to.CancellationRead(session, document, asked_at))


def _is_stopped(assignment: _Assignment) -> bool:
    return assignment.stopped
