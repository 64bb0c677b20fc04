"""The scheduler under everything that can happen, its invariants checked after each step."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batchflow.protocol.documents import Cancellation
from batchflow.protocol.wire import TaskItem
from batchflow.retry import Failure
from node_agent.scheduling import events as to
from node_agent.scheduling.crash_history import CrashCount
from node_agent.scheduling.scheduler import Scheduler
from tests.support.agent_world import INCARNATION, task

SESSION = ("job", "client")


class SchedulerMachine(RuleBasedStateMachine):
    """The world around a scheduler: slots, a broker, a document of cancellations, a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.sequence = 0
        self.delivery = 0
        self.messages: dict[int, set[int]] = {}
        """By delivery: the scheduler's numbers of its tasks; those that were completed or left are gone."""
        self.accepted: set[int] = set()
        self.sending: set[int] = set()
        self.copying: set[int] = set()
        self.completing: set[int] = set()
        self.lost: set[int] = set()
        self.prepared: dict[int, list[int]] = {}
        self.running: dict[int, list[int]] = {}
        self.stopped: set[int] = set()
        self.reading: list[float] = []
        self.intervals: list[tuple[int, int]] = []
        self.known: list[tuple[int, int]] = []
        self.recalls: list[int] = []
        self.pulling = False
        self.drained = False
        self.exited = False
        self.left_some = False
        """It exited although not everything was answered in time."""

    @initialize(slots=st.integers(1, 3), idle=st.sampled_from([None, 5.0]))
    def begin(self, slots: int, idle: float | None) -> None:
        deaths = {
            f"{INCARNATION}:3": CrashCount(1, 0),
            f"{INCARNATION}:5": CrashCount(0, 2),
            f"{INCARNATION}:6": CrashCount(3, 0),
        }
        self.scheduler = Scheduler(slots, "host", idle, self.now, deaths)
        self.feed(to.Tick())

    def feed(self, *events: to.Event) -> None:
        for command in self.scheduler.handle_all(events, self.now):
            assert not self.exited, f"{command} after the exit"
            self.obey(command)

    def obey(self, command: to.Command) -> None:
        match command:
            case to.Prepare(slot, tasks):
                assert tasks
                assert slot not in self.prepared
                assert slot not in self.running
                assert not set(tasks) & (self.placed() | self.accepted | self.sending | self.copying)
                self.prepared[slot] = list(tasks)
            case to.Start(slot, tasks):
                assert tasks
                assert set(tasks) <= set(self.prepared.pop(slot))
                assert not any(self.is_cancelled(task) for task in tasks), "a cancelled task starts"
                self.running[slot] = list(tasks)
            case to.Follow(slot, tasks):
                assert tasks
                assert slot not in self.stopped
                assert self.running[slot], "nothing runs that could be followed"
                assert not set(tasks) & (self.placed() | self.accepted | self.sending | self.copying)
                assert not any(self.is_cancelled(task) for task in tasks), "a cancelled task follows"
                self.running[slot] += tasks
            case to.Stop(slot):
                assert slot in self.prepared or slot in self.running
                assert slot not in self.stopped
                self.stopped.add(slot)
            case to.Recall(slot):
                assert slot in self.running
                self.recalls.append(slot)
            case to.SendResult(task):
                self.is_on_its_way_once(task)
                self.sending.add(task)
            case to.HandBack(task):
                self.is_on_its_way_once(task)
                self.copying.add(task)
            case to.Complete(delivery):
                assert self.messages[delivery] <= self.accepted, "completed with open tasks"
                assert delivery not in self.completing
                self.completing.add(delivery)
            case to.Leave(delivery):
                self.messages.pop(delivery)
            case to.Pull():
                assert not self.drained
                assert not self.pulling
                self.pulling = True
            case to.Hold():
                self.pulling = False
            case to.ReadCancellation():
                self.reading.append(self.now)
            case to.Exit(reason):
                self.exited = True
                self.left_some = reason.endswith("locks")
            case to.LastLook() | to.Announce() | to.ForgetCrashes():
                pass

    def is_on_its_way_once(self, task: int) -> None:
        assert task not in self.sending | self.copying | self.accepted
        for tasks in (*self.prepared.values(), *self.running.values()):
            if task in tasks:
                tasks.remove(task)

    def is_cancelled(self, task: int) -> bool:
        sequence = int(self.scheduler.item(task).uid.rpartition(":")[2])
        return any(first <= sequence <= last for first, last in self.known)

    def placed(self) -> set[int]:
        return {task for tasks in (*self.prepared.values(), *self.running.values()) for task in tasks}

    # What happens

    @precondition(lambda self: self.recalls)
    @rule(begun=st.integers(0, 4))
    def recalled(self, begun: int) -> None:
        """Some that the scheduler took for waiting had begun meanwhile, or none at all had."""
        slot = self.recalls.pop()
        if slot in self.running and slot not in self.stopped:
            tasks = self.running[slot]
            self.running[slot] = tasks[:begun]
            self.feed(to.Recalled(slot, tasks[begun:]))

    @precondition(lambda self: not self.exited)
    @rule(
        size=st.integers(1, 4),
        redelivered=st.booleans(),
        age=st.sampled_from([0.0, 5.0]),
        hop=st.integers(0, 1),
    )
    def message_arrives(self, size: int, redelivered: bool, age: float, hop: int) -> None:
        items = [task(self.sequence + offset, hop=hop, retry={"max_attempts": 2}) for offset in range(size)]
        self.sequence += size
        self.arrive(items, redelivered, age)

    @precondition(lambda self: not self.exited and self.sequence)
    @rule(data=st.data())
    def known_task_arrives_again(self, data: st.DataObject) -> None:
        sequence = data.draw(st.integers(0, self.sequence - 1))
        self.arrive([task(sequence)], redelivered=True, age=10.0)

    def arrive(self, items: list[TaskItem], redelivered: bool, age: float) -> None:
        self.delivery += 1
        before = set(self.scheduler._tasks)
        identities = {held.identity: number for number, held in self.scheduler._tasks.items()}
        again = {
            identities[key] for item in items if (key := (item.uid, item.attempt, item.hop)) in identities
        }
        commands = self.scheduler.handle(to.Arrived(self.delivery, items, redelivered, age), self.now)
        taken = {n for n, held in self.scheduler._tasks.items() if held.message.delivery == self.delivery}
        assert taken & before == (again if redelivered else set()), "run again, or another one adopted"
        self.lost |= {number for number, tasks in self.messages.items() if tasks & taken}
        self.messages[self.delivery] = taken
        for tasks in self.messages.values():
            if tasks is not taken:
                tasks -= taken
        for command in commands:
            self.obey(command)

    @precondition(lambda self: self.prepared)
    @rule(data=st.data(), fit=st.booleans())
    def preparation_ends(self, data: st.DataObject, fit: bool) -> None:
        slot = data.draw(st.sampled_from(sorted(self.prepared)))
        if fit:
            self.feed(to.Prepared(slot))
            return
        for number in list(self.prepared[slot]):
            self.feed(to.Ended(number, Failure("TaskRejected"), "unfit", 1.0, 0.0, 0.5))
        self.free(slot)

    @precondition(lambda self: any(self.running.values()))
    @rule(
        data=st.data(),
        failure=st.sampled_from(
            [None, Failure("TaskFailed"), Failure("TaskTimeout", request="retry", delay=2.0)]
        ),
        duration=st.sampled_from([0.001, 0.5]),
        together=st.integers(1, 4),
    )
    def tasks_end(self, data: st.DataObject, failure: Failure | None, duration: float, together: int) -> None:
        """One after the other, and the agent learns of all of them at once."""
        slot = data.draw(st.sampled_from(sorted(slot for slot, tasks in self.running.items() if tasks)))
        numbers = self.running[slot][:together]
        error = None if failure is None else "error"
        self.feed(*(to.Ended(number, failure, error, 1.0, duration, 0.5) for number in numbers))
        assert self.exited or set(numbers) <= self.sending | self.copying

    @precondition(lambda self: self.stopped or any(not tasks for tasks in self.running.values()))
    @rule(data=st.data())
    def slot_becomes_free(self, data: st.DataObject) -> None:
        ready = self.stopped | {slot for slot, tasks in self.running.items() if not tasks}
        self.free(data.draw(st.sampled_from(sorted(ready))))

    def free(self, slot: int) -> None:
        self.prepared.pop(slot, None)
        self.running.pop(slot, None)
        self.stopped.discard(slot)
        self.feed(to.Freed(slot))

    @precondition(lambda self: self.sending)
    @rule(data=st.data())
    def results_are_accepted(self, data: st.DataObject) -> None:
        tasks = data.draw(st.sets(st.sampled_from(sorted(self.sending)), min_size=1))
        self.sending -= tasks
        self.accepted |= tasks
        self.feed(to.ResultsAccepted(sorted(tasks)))

    @precondition(lambda self: self.copying)
    @rule(data=st.data(), accepted=st.booleans())
    def copy_is_answered(self, data: st.DataObject, accepted: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.copying)))
        self.copying.discard(number)
        if accepted:
            self.accepted.add(number)
        elif self.scheduler.state == "draining" and self.scheduler._tasks[number].failure is None:
            self.accepted.add(number)
            self.lost.add(self.scheduler._tasks[number].message.delivery)
        self.feed(to.CopyAccepted(number) if accepted else to.CopyRefused(number))

    @precondition(lambda self: self.completing)
    @rule(data=st.data(), done=st.booleans())
    def completion_is_answered(self, data: st.DataObject, done: bool) -> None:
        delivery = data.draw(st.sampled_from(sorted(self.completing)))
        self.completing.discard(delivery)
        del self.messages[delivery]
        self.feed(to.Completed(delivery) if done else to.LeaseGone(delivery))

    @precondition(lambda self: set(self.messages) - self.completing - self.lost)
    @rule(data=st.data())
    def lock_runs_out(self, data: st.DataObject) -> None:
        delivery = data.draw(st.sampled_from(sorted(set(self.messages) - self.completing - self.lost)))
        self.lost.add(delivery)
        self.feed(to.LeaseGone(delivery))

    @rule(data=st.data(), step=st.sampled_from([0.05, 0.3, 1.1, 6.0]))
    def time_passes(self, data: st.DataObject, step: float) -> None:
        until = self.now + step
        while (deadline := self.scheduler.next_deadline()) is not None and deadline <= until:
            assert not self.exited
            self.now = max(self.now, deadline)
            self.feed(to.Tick())
            again = self.scheduler.next_deadline()
            assert again is None or again > self.now, "a deadline that a tick does not move"
        self.now = until

    @precondition(lambda self: self.sequence)
    @rule(data=st.data())
    def tasks_are_cancelled(self, data: st.DataObject) -> None:
        first = data.draw(st.integers(0, self.sequence - 1))
        self.intervals.append((first, first + data.draw(st.integers(0, 2))))

    @precondition(lambda self: self.reading)
    @rule(readable=st.booleans())
    def cancellations_are_read(self, readable: bool) -> None:
        asked_at = self.reading.pop(0)
        if not readable:
            self.feed(to.CancellationUnread(SESSION))
            return
        self.known = list(self.intervals)
        document = Cancellation({INCARNATION: tuple(self.known)}) if self.known else None
        self.feed(to.CancellationRead(SESSION, document, asked_at))

    @rule(blocked=st.booleans())
    def results_are_blocked(self, blocked: bool) -> None:
        self.feed(to.Blocked(blocked))

    @rule()
    def last_look_finds_nothing(self) -> None:
        self.feed(to.NothingLeft())

    @rule(grace=st.sampled_from([0.0, 3.0]))
    def drain(self, grace: float) -> None:
        if not self.exited:
            self.drained = True
        self.feed(to.Drain(grace))

    # What always holds

    @invariant()
    def every_task_is_in_one_place(self) -> None:
        """Waiting in the scheduler, in a slot, or on its way out: never in two, never nowhere."""
        scheduler = getattr(self, "scheduler", None)
        if scheduler is None or self.exited:
            return
        waiting = [held.number for held in scheduler._waiting]
        places = Counter([*waiting, *self.placed(), *self.sending, *self.copying])
        held = set(scheduler._tasks)
        assert set(places) == held
        assert all(times == 1 for times in places.values())
        assert {number for tasks in self.messages.values() for number in tasks} >= held

    @invariant()
    def a_held_message_is_known(self) -> None:
        scheduler = getattr(self, "scheduler", None)
        if scheduler is None or self.exited:
            return
        assert set(scheduler._messages) == set(self.messages)

    @invariant()
    def nothing_is_pulled_while_draining(self) -> None:
        assert not (self.drained and self.pulling)

    def teardown(self) -> None:
        """Drained, and with everything answered, the agent comes to its end; nothing is forgotten."""
        if not hasattr(self, "scheduler"):
            return
        self.drain(0.0)
        for _ in range(1000):
            if self.exited:
                break
            self.answer_something()
        assert self.exited
        assert self.left_some or not (self.messages or self.scheduler._tasks)

    def answer_something(self) -> None:
        if self.sending:
            tasks, self.sending = sorted(self.sending), set()
            self.accepted |= set(tasks)
            self.feed(to.ResultsAccepted(tasks))
        elif self.copying:
            number = self.copying.pop()
            self.accepted.add(number)
            self.feed(to.CopyAccepted(number))
        elif self.stopped:
            self.free(min(self.stopped))
        elif self.completing:
            delivery = self.completing.pop()
            del self.messages[delivery]
            self.feed(to.Completed(delivery))
        else:
            empty = [slot for slot, tasks in self.running.items() if not tasks]
            assert empty, "nothing is under way, and the agent does not end"
            self.free(empty[0])


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
