"""Nodes and their agents in the model: the real scheduler and lease book, with a shell as thin as can be.

The shell takes the real one's steps in the real one's order: a result is accepted before its message is
completed, a copy likewise; what is sent again has the same bytes and id; a slot notes what it runs before it
runs. A node is the supervisor: it starts an agent, remembers what died with it, and starts the next one.
"""

from __future__ import annotations

import itertools
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import orjson

from batchflow import wire
from batchflow.errors import BrokerError, LeaseLost
from batchflow.leases import LeaseBook
from batchflow.local import queues as core
from batchflow.model import Status
from node_agent import reports
from node_agent import scheduling as to
from node_agent.deaths import Deaths, after_death
from node_agent.delivery import LAST_LOOK, copy_message, read_tasks
from node_agent.outcomes import Outcome
from node_agent.scheduler import Scheduler
from tests.model.world import NEVER, NOW, Backoff, Call, Process, Steps, Wait, World, sleep

_RESTART = 0.25
_MOST_IN_A_PARCEL = 1000


@dataclass(frozen=True, slots=True)
class Work:
    """What a task does: it travels as its arguments."""

    duration: float = 0.01
    """Seconds."""
    failures: int = 0
    """So many attempts ask to be tried again."""
    lethal: bool = False
    """Kills its agent."""

    def arguments(self) -> list[object]:
        return [self.duration, self.failures, self.lethal]

    @classmethod
    def of(cls, item: wire.TaskItem) -> Work:
        assert isinstance(item.params, list)
        return cls(*item.params)


class Node(Process):
    """Keeps one agent alive; outlives it."""

    mortal = False

    def __init__(self, world: World, name: str, slots: int, idle_exit: float | None) -> None:
        super().__init__(world, name)
        self.slots = slots
        self.idle_exit = idle_exit
        self.running: list[list[str]] = [[] for _ in range(slots)]
        self.deaths: dict[str, Deaths] = {}
        self.agent: Agent | None = None
        self._numbers = itertools.count(1)
        self.spawn(self._supervise())

    @property
    def quiet(self) -> bool:
        """Whether nothing is on its way."""
        return self.agent is None or not self.agent.alive or self.agent.idle

    def drain_after(self, seconds: float) -> Steps:
        """Tell the agent that lives then to stop."""
        yield sleep(self, seconds)
        if self.agent is not None and self.agent.alive:
            self.agent.drain(2.0)

    def _supervise(self) -> Steps:
        while True:
            self.agent = agent = Agent(self, f"{self.name}-{next(self._numbers)}")
            yield Wait(agent.until_gone)
            if not agent.exited:
                uids = [uid for slot in self.running for uid in slot]
                self.deaths = after_death(self.deaths, uids, self.now) if uids else self.deaths
            self.running = [[] for _ in range(self.slots)]
            yield sleep(self, _RESTART)
            yield Wait(lambda: NOW if self.world.tasks.has_ready() else NEVER)


@dataclass(slots=True, eq=False)
class _Assignment:
    tasks: tuple[int, ...]
    started: tuple[int, ...] | None = None
    stopped: bool = False


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
        self.scheduler = Scheduler(node.slots, node.name, node.idle_exit, self.now, dict(node.deaths))
        self._leases: LeaseBook[int] = LeaseBook()
        self._held: dict[int, bytes] = {}
        self._outcomes: dict[int, reports.Done] = {}
        self._posts: dict[str, _Post] = {}
        self._copies: deque[to.HandBack] = deque()
        self._slots: list[_Assignment | None] = [None] * node.slots
        self._wanted = False
        self._look_until: float | None = None
        self._deliveries = itertools.count(1)
        self._parcels = itertools.count(1)
        for service in (self._receive, self._renewals, self._results, self._copy, self._tick):
            self.spawn(service())
        for index in range(node.slots):
            self.spawn(self._slot(index))
        self.feed(to.Tick())

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way."""
        return not (self.scheduler.held or self._held or self._posts or self._copies)

    def feed(self, event: to.Event) -> None:
        for command in self.scheduler.handle(event, self.now):
            self._obey(command)

    def drain(self, grace: float) -> None:
        self.feed(to.Drain(grace))

    def _obey(self, command: to.Command) -> None:
        match command:
            case to.Prepare(slot, tasks):
                self._slots[slot] = _Assignment(tasks)
            case to.Start(slot, tasks):
                if (assignment := self._slots[slot]) is not None:
                    assignment.started = tasks
            case to.Stop(slot):
                if (assignment := self._slots[slot]) is not None:
                    assignment.stopped = True
            case to.SendResult(task, verdict):
                self._send_result(task, verdict)
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
            case to.ForgetDeaths(uid):
                self.node.deaths.pop(uid, None)
            case to.LastLook():
                self.spawn(self._look_once_more())
            case to.Exit():
                self.exited = True
                self.world.kill(self)
            case to.Announce():
                pass

    # Messages

    def _receive(self) -> Steps:
        backoff = Backoff()
        tasks = self.world.tasks
        while True:
            yield Wait(self._receive_due)
            if self._look_until is not None and not tasks.has_ready():
                self._wanted, self._look_until = False, None
                self.feed(to.NothingLeft())
                continue
            try:
                found = yield Call(lambda: tasks.receive(1, self.now, self), receives=True)
            except BrokerError:
                yield backoff.wait(self)
                continue
            backoff = Backoff()
            for message in found:
                self._arrived(message)

    def _look_once_more(self) -> Steps:
        """Say that we are going before looking: who does not see it yet still finds us looking."""
        with suppress(BrokerError):
            yield Call(lambda: None)
        if self.scheduler.state == "exiting":
            self._wanted, self._look_until = True, self.now + LAST_LOOK

    def _receive_due(self) -> float:
        if not self._wanted:
            return NEVER
        if self.world.tasks.has_ready():
            return NOW
        return NEVER if self._look_until is None else self._look_until

    def _arrived(self, message: core.Message) -> None:
        if self.scheduler.state == "exiting":
            self._wanted, self._look_until = False, None
        number = next(self._deliveries)
        self._held[number] = message.lock_token
        self._leases.add(number, self.world.lock, self.now)
        age = max(0.0, self.now - message.enqueued_at)
        self.feed(to.Arrived(number, read_tasks(message.body), message.delivery_count > 0, age))

    def _renewals(self) -> Steps:
        while True:
            yield Wait(self._renewal_due)
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
            yield Call(lambda: self.world.tasks.renew(token, self.now))
        except LeaseLost:
            if delivery in self._leases:
                self._leases.remove(delivery)
                self.feed(to.LeaseGone(delivery))
        except BrokerError:
            self._leases.failed(delivery, self.now)
        else:
            self._leases.renewed(delivery, asked_at)

    def _complete(self, delivery: int) -> Steps:
        token = self._held[delivery]
        backoff = Backoff()
        done = False
        while delivery in self._leases:
            try:
                yield Call(lambda: self.world.tasks.complete(token, self.now))
            except LeaseLost:
                break
            except BrokerError:
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

    def _send_result(self, task: int, verdict: to.Verdict | None) -> None:
        item = self.scheduler.item(task)
        if verdict is not None:
            encoded = reports.encode_verdict(item, verdict, self.node.name, self.now)
        else:
            encoded = reports.encode_outcome(item, self._outcomes[task], self.node.name)
        self._posts.setdefault(item.mailbox, _Post()).results.append((task, encoded))

    def _results(self) -> Steps:
        while True:
            yield Wait(lambda: NOW if self._posts else NEVER)
            mailbox = next(iter(self._posts))
            line = self._posts[mailbox].results
            taken = [line.popleft() for _ in range(min(len(line), _MOST_IN_A_PARCEL))]
            if not line:
                del self._posts[mailbox]
            body = wire.join("results", [item for _, item in taken])
            yield from self._deliver(core.Draft(body, f"{self.name}-{next(self._parcels)}", mailbox))
            for task, _ in taken:
                self._outcomes.pop(task, None)
            self.feed(to.ResultsAccepted([task for task, _ in taken]))

    def _deliver(self, draft: core.Draft) -> Steps:
        """The same bytes under the same id, until the broker has them."""
        backoff = Backoff()
        blocked = False
        while True:
            try:
                yield Call(lambda: self.world.results.send([draft], self.now))
            except BrokerError:
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
            yield Wait(lambda: NOW if self._copies else NEVER)
            command = self._copies[0]
            item = self.scheduler.item(command.task)
            copy = wire.handed_back(item, attempt=command.attempt, history=command.history)
            message = copy_message(copy)
            at = self.now + command.delay if command.delay > 0 else None
            yield from self._send_copy(core.Draft(message.body, message.message_id, scheduled_for=at))
            self._copies.popleft()
            self._outcomes.pop(command.task, None)
            self.feed(to.CopyAccepted(command.task))

    def _send_copy(self, draft: core.Draft) -> Steps:
        backoff = Backoff()
        while True:
            try:
                yield Call(lambda: self.world.tasks.send([draft], self.now))
            except BrokerError:
                yield backoff.wait(self)
            else:
                return

    # Slots

    def _slot(self, index: int) -> Steps:
        while True:
            yield Wait(partial(self._assigned, index))
            assignment = self._slots[index]
            assert assignment is not None
            yield from self._work(index, assignment)
            if not self.alive:
                return
            self.node.running[index] = []
            self._slots[index] = None
            self.feed(to.Freed(index))

    def _assigned(self, index: int) -> float:
        return NEVER if self._slots[index] is None else NOW

    def _work(self, index: int, assignment: _Assignment) -> Steps:
        if assignment.stopped:
            return
        self.feed(to.Prepared(index))
        yield Wait(lambda: NOW if assignment.stopped or assignment.started is not None else NEVER)
        if assignment.stopped or assignment.started is None:
            return
        items = {number: self.scheduler.item(number) for number in assignment.started}
        self.node.running[index] = [item.uid for item in items.values()]
        for number, item in items.items():
            ends_at = self.now + Work.of(item).duration
            yield Wait(partial(_stopped_or, assignment, ends_at))
            if assignment.stopped:
                return
            self._end(number, item)
            if not self.alive:
                return

    def _end(self, number: int, item: wire.TaskItem) -> None:
        """The task's code is over, one way or another."""
        work = Work.of(item)
        if work.lethal:
            self.world.kill(self)
            return
        if item.attempt <= work.failures:
            outcome = Outcome(Status.FAILED, error="again", kind="TaskFailed", request="retry", delay=1.0)
        elif self.world.child_dies():
            outcome = Outcome(Status.FAILED, error="killed", kind="WorkerDied", exit_code=-9)
        else:
            outcome = Outcome(Status.SUCCEEDED, orjson.dumps(item.uid))
        value = None if outcome.value is None else orjson.Fragment(outcome.value)
        self._outcomes[number] = reports.Done(outcome, value)
        self.feed(to.Ended(number, reports.failure(outcome), outcome.error, self.now, work.duration, 0.5))

    # Time

    def _tick(self) -> Steps:
        while True:
            yield Wait(self._tick_due)
            self.feed(to.Tick())

    def _tick_due(self) -> float:
        deadline = self.scheduler.next_deadline()
        return NEVER if deadline is None else deadline

    def _read_cancellation(self, session: to.Session) -> Steps:
        asked_at = self.now
        try:
            document = yield Call(lambda: self.world.cancellations.get(session))
        except BrokerError:
            self.feed(to.CancellationUnread(session))
        else:
            self.feed(to.CancellationRead(session, document, asked_at))


def _stopped_or(assignment: _Assignment, until: float) -> float:
    return NOW if assignment.stopped else until
