"""The scheduler under everything that can happen, its invariants checked after each step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from batchflow.protocol.documents import Cancellation
from batchflow.protocol.needs import KnownNode, Needs
from batchflow.protocol.wire import TaskItem
from batchflow.retry import Failure
from node_agent.scheduling import events as to
from node_agent.scheduling import state
from node_agent.scheduling.crash_history import CrashCount
from node_agent.scheduling.scheduler import Scheduler
from node_agent.scheduling.state import SlotPhase, TaskState
from tests.support.agent_world import INCARNATION, task

SESSION = ("job", "client")
WALKS: Final = 400
TABLES: Final = ("TASK_TRANSITIONS", "SLOT_TRANSITIONS")


REQUIRED: Final[list[dict[str, Any] | None]] = [
    None,
    None,
    None,
    {"slots": 2},
    {"slots": "all", "tags": ["ssd"]},
    {"memory": 60},
    {"gpus": 1},
    {"tags": ["elsewhere"]},
]

Chance = st.DataObject | Random


def choose(chance: Chance, items: Iterable[int]) -> int:
    """Choose one of these."""
    ordered = sorted(items)
    return chance.choice(ordered) if isinstance(chance, Random) else chance.draw(st.sampled_from(ordered))


def some(chance: Chance, items: Iterable[int]) -> set[int]:
    """Choose one or several of these."""
    ordered = sorted(items)
    if isinstance(chance, Random):
        return set(chance.sample(ordered, chance.randint(1, len(ordered))))
    return chance.draw(st.sets(st.sampled_from(ordered), min_size=1))


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
        self.checking: set[int] = set()
        """Slots that are prepared and have not started."""
        self.asked_back: set[int] = set()
        """Slots whose tasks were asked back since they were free."""
        self.pulling = False
        self.drained = False
        self.exited = False
        self.left_some = False
        """It exited although not everything was answered in time."""

    @initialize(slots=st.integers(1, 3), idle=st.sampled_from([None, None, 5.0]))
    def begin(self, slots: int, idle: float | None) -> None:
        crashes = {
            f"{INCARNATION}:3": CrashCount(1, 0),
            f"{INCARNATION}:5": CrashCount(0, 2),
            f"{INCARNATION}:6": CrashCount(3, 0),
        }
        node = KnownNode(slots, memory=100, gpus=1, tags=frozenset({"ssd"}))
        self.scheduler = Scheduler(slots, "host", idle, self.now, crashes, node=node)
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
                self.checking.discard(slot)
                assert self.scheduler.settlement.start_by(tasks) >= self.now
                assert not any(self.is_cancelled(task) for task in tasks), "a cancelled task starts"
                self.running[slot] = list(tasks)
            case to.Follow(slot, tasks):
                assert tasks
                assert slot not in self.stopped
                assert self.scheduler.settlement.start_by(tasks) >= self.now
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
                self.asked_back.add(slot)
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
            case to.StepBack():
                self.drained = True
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
        redelivered=st.sampled_from([False, False, False, True]),
        age=st.sampled_from([0.0, 0.0, 5.0]),
        hop=st.sampled_from([0, 0, 0, 1]),
        requires=st.sampled_from(REQUIRED),
    )
    def message_arrives(
        self, size: int, redelivered: bool, age: float, hop: int, requires: dict[str, Any] | None = None
    ) -> None:
        """One of its tasks may require something."""
        items = [task(self.sequence + offset, hop=hop, retry={"max_attempts": 2}) for offset in range(size)]
        items[-1] = replace(items[-1], requires=requires)
        self.sequence += size
        self.arrive(items, redelivered, age)

    @precondition(lambda self: not self.exited and self.sequence)
    @rule(data=st.data())
    def known_task_arrives_again(self, data: Chance) -> None:
        sequence = choose(data, range(self.sequence))
        self.arrive([task(sequence)], redelivered=True, age=10.0)

    def arrive(self, items: list[TaskItem], redelivered: bool, age: float) -> None:
        self.delivery += 1
        before = set(self.scheduler.tasks)
        identities = {held.identity: number for number, held in self.scheduler.tasks.items()}
        again = {
            identities[key] for item in items if (key := (item.uid, item.attempt, item.hop)) in identities
        }
        commands = self.scheduler.handle(to.Arrived(self.delivery, items, redelivered, age), self.now)
        taken = {n for n, held in self.scheduler.tasks.items() if held.message.delivery == self.delivery}
        assert taken & before == (again if redelivered else set()), "run again, or another one adopted"
        self.lost |= {number for number, tasks in self.messages.items() if tasks & taken}
        self.messages[self.delivery] = taken
        for tasks in self.messages.values():
            if tasks is not taken:
                tasks -= taken
        for command in commands:
            self.obey(command)

    @precondition(lambda self: set(self.prepared) - self.checking)
    @rule(data=st.data(), fit=st.sampled_from([True, True, False]))
    def preparation_ends(self, data: Chance, fit: bool) -> None:
        slot = choose(data, set(self.prepared) - self.checking)
        if fit:
            self.checking.add(slot)
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
        duration=st.sampled_from([0.001, 0.001, 0.001, 0.5]),
        together=st.integers(1, 4),
    )
    def tasks_end(self, data: Chance, failure: Failure | None, duration: float, together: int) -> None:
        """One after the other, and the agent learns of all of them at once."""
        slot = choose(data, [slot for slot, tasks in self.running.items() if tasks])
        numbers = self.running[slot][:together]
        error = None if failure is None else "error"
        self.feed(*(to.Ended(number, failure, error, 1.0, duration, 0.5) for number in numbers))
        assert self.exited or set(numbers) <= self.sending | self.copying

    @precondition(lambda self: self.stopped or any(not tasks for tasks in self.running.values()))
    @rule(data=st.data())
    def slot_becomes_free(self, data: Chance) -> None:
        ready = self.stopped | {slot for slot, tasks in self.running.items() if not tasks}
        self.free(choose(data, ready))

    @precondition(lambda self: self.at_work())
    @rule(data=st.data())
    def node_cannot_run_what_a_slot_has(self, data: Chance) -> None:
        """What has not ended is handed back, at last by an agent that steps back."""
        slot = choose(data, self.at_work())
        numbers = list(self.prepared.get(slot, ()) or self.running.get(slot, ()))
        self.feed(*(to.Unable(number, "no room", 1.0) for number in numbers))
        assert self.exited or set(numbers) <= self.sending | self.copying
        self.free(slot)

    @precondition(lambda self: any(self.running.values()))
    @rule(data=st.data())
    def slot_is_late(self, data: Chance) -> None:
        """It stood still, and gives back what it has not begun."""
        self.free(choose(data, [slot for slot, tasks in self.running.items() if tasks]))

    def at_work(self) -> list[int]:
        """The slots that prepare their tasks or run them."""
        slots = (*self.prepared.items(), *self.running.items())
        return [slot for slot, tasks in slots if tasks and slot not in self.checking]

    def free(self, slot: int) -> None:
        self.prepared.pop(slot, None)
        self.running.pop(slot, None)
        for slots in (self.stopped, self.checking, self.asked_back):
            slots.discard(slot)
        self.feed(to.Freed(slot))

    @precondition(lambda self: self.sending)
    @rule(data=st.data())
    def results_are_accepted(self, data: Chance) -> None:
        tasks = some(data, self.sending)
        self.sending -= tasks
        self.accepted |= tasks
        held = [self.scheduler.tasks[number] for number in tasks if not self.exited]
        self.feed(to.ResultsAccepted(sorted(tasks)))
        assert all(task.state is TaskState.SETTLED for task in held)

    @precondition(lambda self: self.copying)
    @rule(data=st.data(), accepted=st.booleans())
    def copy_is_answered(self, data: Chance, accepted: bool) -> None:
        number = choose(data, self.copying)
        self.copying.discard(number)
        if accepted:
            self.accepted.add(number)
        elif self.scheduler.state == "draining" and self.scheduler.tasks[number].failure is None:
            self.accepted.add(number)
            self.lost.add(self.scheduler.tasks[number].message.delivery)
        held = self.scheduler.tasks[number]
        self.feed(to.CopyAccepted(number) if accepted else to.CopyRefused(number))
        assert self.exited or (held.state is TaskState.SETTLED) == (number in self.accepted)

    @precondition(lambda self: self.completing)
    @rule(data=st.data(), done=st.booleans())
    def completion_is_answered(self, data: Chance, done: bool) -> None:
        delivery = choose(data, self.completing)
        self.completing.discard(delivery)
        del self.messages[delivery]
        self.feed(to.Completed(delivery) if done else to.LeaseGone(delivery))

    @precondition(lambda self: set(self.messages) - self.completing - self.lost)
    @rule(data=st.data())
    def lock_runs_out(self, data: Chance) -> None:
        delivery = choose(data, set(self.messages) - self.completing - self.lost)
        self.lost.add(delivery)
        self.feed(to.LeaseGone(delivery))

    @rule(data=st.data(), step=st.sampled_from([0.05, 0.3, 1.1, 6.0]))
    def time_passes(self, data: Chance, step: float) -> None:
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
    def tasks_are_cancelled(self, data: Chance) -> None:
        first = choose(data, range(self.sequence))
        self.intervals.append((first, first + choose(data, range(3))))

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

    @rule(blocked=st.sampled_from([False, False, True]))
    def results_are_blocked(self, blocked: bool) -> None:
        self.feed(to.Blocked(blocked))

    @rule()
    def last_look_finds_nothing(self) -> None:
        self.feed(to.NothingLeft())

    @precondition(lambda self: self.now > 101.0)
    @rule(grace=st.sampled_from([0.0, 3.0]), really=st.sampled_from([False] * 24 + [True]))
    def drain_now_and_then(self, grace: float, really: bool) -> None:
        if really:
            self.drain(grace)

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
        waiting = [held.number for held in scheduler.placement.waiting]
        places = Counter([*waiting, *self.placed(), *self.sending, *self.copying])
        held = set(scheduler.tasks)
        assert set(places) == held
        assert all(times == 1 for times in places.values())
        assert {number for tasks in self.messages.values() for number in tasks} >= held

    @invariant()
    def every_task_is_in_the_state_of_its_place(self) -> None:
        scheduler = getattr(self, "scheduler", None)
        if scheduler is None or self.exited:
            return
        places = {
            TaskState.WAITING: {held.number for held in scheduler.placement.waiting},
            TaskState.PLACED: self.placed(),
            TaskState.SENDING: self.sending,
            TaskState.COPYING: self.copying,
        }
        for place, numbers in places.items():
            assert {held.number for held in scheduler.tasks.values() if held.state is place} == numbers

    @invariant()
    def every_slot_is_in_the_phase_of_its_work(self) -> None:
        scheduler = getattr(self, "scheduler", None)
        if scheduler is None or self.exited:
            return
        for slot in scheduler.placement.slots:
            assert slot.phase in self.possible_phases(slot.index), slot.index

    def possible_phases(self, slot: int) -> set[SlotPhase]:
        """What the phase of a slot may be, by what the world around it has seen."""
        if slot in self.prepared:
            if slot in self.stopped:
                return {SlotPhase.ABORTING}
            return {SlotPhase.CHECKING if slot in self.checking else SlotPhase.PREPARING}
        if slot not in self.running:
            return {SlotPhase.FREE}
        if slot in self.stopped:
            return {SlotPhase.STOPPING}
        return {SlotPhase.RECALLED if slot in self.asked_back else SlotPhase.RUNNING}

    @invariant()
    def what_runs_has_what_it_requires(self) -> None:
        """No two tasks have the same slot, memory or GPU, and none runs on a node that lacks something."""
        scheduler = getattr(self, "scheduler", None)
        if scheduler is None or self.exited:
            return
        slots = (*self.prepared.values(), *self.running.values())
        required = [scheduler.item(tasks[0]).requires for tasks in slots if tasks]
        needs = [Needs.read(each) for each in required if each is not None]
        count = scheduler.slots
        assert sum(each.slots or count for each in needs) + len(slots) - len(needs) <= count
        assert sum(each.memory for each in needs) <= 100
        assert sum(each.gpus for each in needs) <= 1
        assert not any("elsewhere" in each.tags for each in needs)

    @invariant()
    def a_held_message_is_known(self) -> None:
        scheduler = getattr(self, "scheduler", None)
        if scheduler is None or self.exited:
            return
        assert set(scheduler.messages.by_delivery) == set(self.messages)

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
        assert self.left_some or not (self.messages or self.scheduler.tasks)

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


@dataclass(frozen=True)
class Watched(Mapping[Any, Any]):
    """A table that notes which of its rows are used."""

    rows: Mapping[Any, Any]
    used: set[Any] = field(default_factory=set)

    def __getitem__(self, key: Any) -> Any:
        found = self.rows[key]
        self.used.add(key)
        return found

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


Step = tuple[Callable[[SchedulerMachine], object], Callable[[SchedulerMachine, Random], None]]
FAILURES: Final = [None, None, Failure("TaskFailed"), Failure("TaskTimeout", request="retry", delay=2.0)]
STEPS: Final[list[Step]] = [
    (
        lambda machine: machine.sequence < 60,
        lambda machine, chance: machine.message_arrives(
            chance.randint(1, 4),
            chance.random() < 0.1,
            chance.choice([0.0, 0.0, 5.0]),
            chance.random() < 0.1,
            chance.choice([None, *REQUIRED]),
        ),
    ),
    (
        lambda machine: set(machine.prepared) - machine.checking,
        lambda machine, chance: machine.preparation_ends(chance, chance.random() < 0.8),
    ),
    (
        lambda machine: any(machine.running.values()),
        lambda machine, chance: machine.tasks_end(
            chance, chance.choice(FAILURES), chance.choice([0.001, 0.001, 0.001, 0.5]), chance.randint(1, 2)
        ),
    ),
    (
        lambda machine: machine.stopped or any(not tasks for tasks in machine.running.values()),
        lambda machine, chance: machine.slot_becomes_free(chance),
    ),
    (lambda machine: machine.recalls, lambda machine, chance: machine.recalled(chance.randint(0, 2))),
    (lambda machine: machine.sending, lambda machine, chance: machine.results_are_accepted(chance)),
    (
        lambda machine: machine.copying,
        lambda machine, chance: machine.copy_is_answered(chance, chance.random() < 0.5),
    ),
    (
        lambda machine: machine.completing,
        lambda machine, chance: machine.completion_is_answered(chance, True),
    ),
    (
        lambda machine: machine.running,
        lambda machine, chance: machine.time_passes(chance, chance.choice([0.05, 0.3, 1.1])),
    ),
    (
        lambda machine: machine.sequence and chance_of_a_cancellation(machine),
        lambda machine, chance: machine.tasks_are_cancelled(chance),
    ),
    (
        lambda machine: machine.sequence > 40 and not machine.drained,
        lambda machine, chance: machine.drain(3.0),
    ),
    (lambda machine: machine.reading, lambda machine, chance: machine.cancellations_are_read(True)),
]


def chance_of_a_cancellation(machine: SchedulerMachine) -> bool:
    """Return whether few are cancelled yet."""
    return len(machine.intervals) < 2


def walk(seed: int) -> None:
    """Let things happen by chance, the same for each seed; then drain, and see the agent come to its end."""
    chance = Random(seed)
    machine = SchedulerMachine()
    machine.begin(chance.randint(1, 3), None)
    for _ in range(chance.randint(5, 80)):
        if possible := [step for condition, step in STEPS if condition(machine)]:
            chance.choice(possible)(machine, chance)
        for check in INVARIANTS:
            check(machine)
    machine.teardown()


def walk_often() -> None:
    for seed in range(WALKS):
        walk(seed)


INVARIANTS: Final = (
    SchedulerMachine.every_task_is_in_one_place,
    SchedulerMachine.every_task_is_in_the_state_of_its_place,
    SchedulerMachine.every_slot_is_in_the_phase_of_its_work,
    SchedulerMachine.what_runs_has_what_it_requires,
)


def test_every_row_of_the_tables_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {name: Watched(getattr(state, name)) for name in TABLES}
    for name, table in tables.items():
        monkeypatch.setattr(state, name, table)
    walk_often()
    for table in tables.values():
        assert table.used == set(table)


MUTANTS = [
    (name, row, other)
    for name in TABLES
    for row, target in getattr(state, name).items()
    for other in type(target).__members__.values()
    if other is not target
]


@pytest.mark.parametrize(("name", "row", "other"), MUTANTS)
def test_a_row_that_leads_elsewhere_is_found(
    name: str, row: Any, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, name, {**getattr(state, name), row: other})
    with pytest.raises((AssertionError, LookupError, ValueError)):
        walk_often()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=75, stateful_step_count=50, deadline=None)
