"""The scheduler's scenarios: an event at a time, and the commands that are expected."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchflow.model import Attempt, Status
from batchflow.protocol.documents import Cancellation
from batchflow.protocol.wire import TaskItem
from batchflow.retry import Failure
from node_agent.scheduling import events as to
from node_agent.scheduling.cancellation import FRESH
from node_agent.scheduling.crash_history import CrashCount
from node_agent.scheduling.load_policy import AGED_HOLD, COPY, HOLD, LOADED_HOLD, MOST_WAIT, STRAGGLER
from node_agent.scheduling.node_failures import LOST, MAX_LOST, MAX_UNABLE, UNABLE
from node_agent.scheduling.scheduler import DIED, MAX_CRASHES, SETTLE, Scheduler
from tests.support.agent_world import INCARNATION, task

SESSION = ("job", "client")


@dataclass
class Play:
    """A scheduler, and a clock that is moved by hand."""

    slots: int = 1
    idle_exit: float | None = None
    crashes: dict[str, CrashCount] = field(default_factory=dict)
    now: float = 0.0
    started: bool = True

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.slots, "host", self.idle_exit, 0.0, self.crashes)
        if self.started:
            assert self.at(0.0, to.Tick()) == [to.Pull()]

    def all(self, now: float, event: to.Event) -> list[to.Command]:
        return self.scheduler.handle(event, now)

    def at(self, now: float, event: to.Event) -> list[to.Command]:
        """Without the reading of cancellations, which happens beside everything else."""
        return [each for each in self.all(now, event) if not isinstance(each, to.ReadCancellation)]

    def arrive(
        self, now: float, *tasks: TaskItem, delivery: int = 1, redelivered: bool = False, age: float = 0.0
    ) -> list[to.Command]:
        return self.at(now, to.Arrived(delivery, tasks, redelivered, age))

    def run(self, now: float, number: int = 0, slot: int = 0) -> None:
        """Let a prepared task begin."""
        assert self.at(now, to.Prepared(slot)) == [to.Start(slot, (number,))]

    def learn(self, duration: float) -> None:
        """Let task 0 come and go, so that it is known how long its like take."""
        self.arrive(1.0, task(0))
        self.run(1.0, 0)
        self.at(1.0 + duration, ended(0, duration=duration))
        self.at(1.0 + duration, to.Freed(0))


def ended(
    number: int, failure: Failure | None = None, duration: float = 0.5, error: str | None = None
) -> to.Ended:
    return to.Ended(number, failure, error, 1000.0, duration, 0.5)


def cancelled(number: int) -> to.SendResult:
    return to.SendResult(number, to.Verdict(Status.CANCELLED, "TaskCancelled", "the task was cancelled"))


def document(*sequences: int) -> Cancellation:
    return Cancellation({INCARNATION: tuple((each, each) for each in sequences)})


def test_a_task_is_prepared_run_sent_and_its_message_completed() -> None:
    """Prepare, start, send the result, and only when it is accepted complete the message."""
    play = Play()
    assert play.arrive(1.0, task(0)) == [to.Prepare(0, (0,)), to.Hold()]
    assert play.at(1.1, to.Prepared(0)) == [to.Start(0, (0,))]
    assert play.at(1.6, ended(0)) == [to.SendResult(0)]
    assert play.at(1.6, to.Freed(0)) == [to.Pull()]
    assert play.at(1.7, to.ResultsAccepted([0])) == [to.Complete(1)]
    assert play.at(1.8, to.Completed(1)) == []
    assert play.scheduler.held == 0


def test_a_message_is_completed_with_its_last_task() -> None:
    """Two slots, three tasks of one message, their results accepted out of order."""
    play = Play(slots=2)
    assert play.arrive(1.0, task(0), task(1), task(2))[:2] == [to.Prepare(0, (0,)), to.Prepare(1, (1,))]
    play.run(1.0, 0, slot=0)
    play.run(1.0, 1, slot=1)
    play.at(1.01, ended(1))
    assert play.at(1.01, to.Freed(1)) == [to.Prepare(1, (2,))]
    assert play.at(1.02, to.ResultsAccepted([1])) == []
    play.run(1.03, 2, slot=1)
    play.at(1.04, ended(0))
    play.at(1.04, ended(2))
    assert play.at(1.05, to.ResultsAccepted([2, 0])) == [to.Complete(1)]


def test_what_was_not_begun_in_time_is_looked_at_anew() -> None:
    """A slot that stood still gives its tasks back; the cancellation of one was not known before."""
    play = Play()
    play.learn(0.001)
    play.arrive(2.0, task(1), task(2), delivery=2)
    assert play.at(2.0, to.Prepared(0)) == [to.Start(0, (1, 2))]
    assert play.scheduler.settlement.start_by((1, 2)) == 2.0 + FRESH
    back = play.all(77.0, to.Freed(0))
    assert to.Prepare(0, (1, 2)) in back
    assert to.ReadCancellation(SESSION) in back
    assert play.at(77.0, to.Prepared(0)) == []
    commands = play.at(77.1, to.CancellationRead(SESSION, document(2), 77.0))
    assert commands[:2] == [cancelled(2), to.Start(0, (1,))]
    assert play.scheduler.settlement.start_by((1,)) == 77.0 + FRESH


def test_short_tasks_share_a_slot() -> None:
    """Once they are known to be short, the tasks of a message go to the slots in chunks."""
    play = Play(slots=2)
    play.learn(0.001)
    commands = play.arrive(2.0, *(task(n) for n in range(1, 9)), delivery=2)
    assert commands[:2] == [to.Prepare(0, (1, 2, 3, 4)), to.Prepare(1, (5, 6, 7, 8))]


def test_results_wait_for_each_other_as_long_as_there_is_work() -> None:
    """A lone task's result never; in a pack for moments, and longer while more than that is still to do."""
    play = Play()
    play.arrive(1.0, task(0))
    play.run(1.0, 0)
    assert play.scheduler.placement.hold == 0.0
    play.at(1.001, ended(0, duration=0.001))
    play.at(1.001, to.Freed(0))
    play.arrive(2.0, *(task(n) for n in range(1, 21)), delivery=2)
    assert play.scheduler.placement.hold == HOLD
    play.arrive(2.0, *(task(n) for n in range(21, 41)), delivery=3)
    assert play.scheduler.placement.hold == 0.03
    play.arrive(2.0, *(task(n) for n in range(41, 81)), delivery=4)
    assert play.scheduler.placement.hold == 0.06
    play.arrive(2.0, *(task(n) for n in range(81, 111)), delivery=5)
    assert play.scheduler.placement.hold == LOADED_HOLD


@pytest.mark.parametrize("duration", [0.045, 0.07])
def test_longer_results_wait_for_the_next_one_under_load_only(duration: float) -> None:
    """Not for a companion, but where more than that follows."""
    play = Play()
    play.learn(duration)
    play.arrive(2.0, task(1), task(2), delivery=2)
    assert play.at(2.0, to.Prepared(0)) == [to.Start(0, (1, 2))]
    play.at(2.1, ended(1, duration=duration))
    assert play.scheduler.placement.hold == 0.0
    play.arrive(2.1, task(3), task(4), delivery=3)
    assert play.scheduler.placement.hold == LOADED_HOLD


@pytest.mark.parametrize(
    ("age", "hold"), [(0.0, HOLD), (0.05, HOLD), (1.0, 0.1), (2.0, 0.2), (60.0, AGED_HOLD)]
)
def test_results_wait_for_a_share_of_the_time_that_their_tasks_waited(age: float, hold: float) -> None:
    """The results of a pack are one message where messages wait in the queue anyway."""
    play = Play()
    play.learn(0.001)
    play.arrive(2.0, *(task(n) for n in range(1, 6)), delivery=2, age=age)
    assert play.scheduler.placement.hold == pytest.approx(hold)
    play.at(2.0, to.Prepared(0))
    for number in range(1, 6):
        play.at(2.1, ended(number, duration=0.001))
    assert play.scheduler.placement.hold == 0.0, "no companion is left"


def test_results_of_long_tasks_never_wait() -> None:
    """What takes 0.11 s rides alone both ways, however much follows."""
    play = Play()
    play.learn(0.11)
    play.arrive(2.0, *(task(n) for n in range(1, 5)), delivery=2)
    play.at(2.0, to.Prepared(0))
    play.at(2.11, ended(1, duration=0.11))
    assert play.scheduler.placement.hold == 0.0


def test_the_next_message_is_pulled_early_for_short_tasks_only() -> None:
    """Below 20 ms on average one message waits while another one runs."""
    play = Play()
    play.arrive(1.0, task(0))
    play.run(1.0, 0)
    assert play.at(1.01, ended(0, duration=0.01)) == [to.SendResult(0), to.Pull()]
    play.at(1.01, to.Freed(0))
    assert play.arrive(2.0, task(1), delivery=2) == [to.Prepare(0, (1,))]
    assert play.arrive(2.0, task(2), delivery=3) == [to.Hold()]


def test_a_warm_slot_with_the_same_bundle_is_preferred() -> None:
    """Its modules are imported there, and its directory is prepared."""
    play = Play(slots=2)
    play.arrive(1.0, task(0, bundle="x"), task(1, bundle="y"))
    for slot in (0, 1):
        play.run(1.0, slot, slot)
        play.at(1.0, ended(slot))
        play.at(1.0, to.Freed(slot))
    assert play.arrive(2.0, task(2, bundle="y"), delivery=2)[0] == to.Prepare(1, (2,))


def test_a_retry_is_a_copy_and_never_a_held_slot() -> None:
    """The attempt is charged, its error kept; the message is completed when the copy is accepted."""
    play = Play()
    play.arrive(1.0, task(0, retry={"max_attempts": 3, "backoff": 8.0, "jitter": 0.0}))
    play.run(1.0)
    past = Attempt(1, "boom", "host", 1000.0)
    expected = to.HandBack(0, 8.0, 2, (past,), "retry")
    assert play.at(1.5, ended(0, Failure("TaskFailed", "ValueError"), error="boom"))[0] == expected
    assert play.at(1.5, to.Freed(0)) == [to.Pull()]
    assert play.at(1.6, to.CopyAccepted(0)) == [to.Complete(1)]


def test_a_retry_that_cannot_leave_ends_the_task() -> None:
    """The outcome that the task has then is better than none."""
    play = Play()
    play.arrive(1.0, task(0, retry={"max_attempts": 3}))
    play.run(1.0)
    play.at(1.5, ended(0, Failure("TaskFailed")))
    assert play.at(1.6, to.CopyRefused(0)) == [to.SendResult(0)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"timeout": 0.0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"memory_limit": -1}, "memory_limit"),
        ({"retry": {"max_attempts": "x"}}, "retry"),
        ({"retry": {"jitter": 2.0}}, "retry"),
    ],
)
def test_limits_that_make_no_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    """With a result that names the limit, not with an exception."""
    command = Play().arrive(1.0, task(0, **changes))[0]
    assert isinstance(command, to.SendResult)
    assert command.verdict is not None
    assert command.verdict.kind == "TaskRejected"
    assert words in command.verdict.error


def test_a_lost_lease_changes_nothing_for_the_task() -> None:
    """It runs on, its result is sent; only the message is not ours to complete."""
    play = Play()
    play.arrive(1.0, task(0))
    play.run(1.0)
    assert play.at(40.0, to.LeaseGone(1)) == []
    assert play.at(41.0, ended(0)) == [to.SendResult(0)]
    assert play.at(41.1, to.ResultsAccepted([0])) == [to.Leave(1)]


def test_a_task_that_comes_back_while_it_runs_is_not_run_twice() -> None:
    """The lock was lost, the broker delivers again, to us: the new message stands for the old one."""
    play = Play(slots=2)
    play.arrive(1.0, task(0))
    play.run(1.0)
    play.at(40.0, to.LeaseGone(1))
    assert play.arrive(41.0, task(0), delivery=2, redelivered=True) == [to.Leave(1)]
    play.at(42.0, ended(0))
    assert play.at(42.1, to.ResultsAccepted([0])) == [to.Complete(2)]


def test_a_message_whose_completion_was_lost_is_completed_when_it_comes_again() -> None:
    """Its result is with the broker already."""
    play = Play()
    play.arrive(1.0, task(0))
    play.run(1.0)
    play.at(1.1, ended(0))
    play.at(1.1, to.Freed(0))
    play.at(1.2, to.ResultsAccepted([0]))
    play.at(1.3, to.LeaseGone(1))
    assert play.arrive(40.0, task(0), delivery=2, redelivered=True) == [to.Complete(2)]


def test_a_copy_is_another_one_than_its_original() -> None:
    """A task handed back uncharged must run when it comes again, even as a second delivery."""
    play = Play()
    play.arrive(1.0, task(0), task(1), redelivered=True)
    play.at(1.1, to.CopyAccepted(0))
    play.at(1.1, to.CopyAccepted(1))
    play.at(1.2, to.Completed(1))
    assert play.arrive(2.0, task(0, hop=1), delivery=2, redelivered=True)[0] == to.Prepare(0, (2,))


def test_a_second_delivery_is_split() -> None:
    """Each task alone, uncharged; the message goes when all copies are accepted."""
    play = Play()
    commands = play.arrive(1.0, task(0), task(1), redelivered=True)
    assert commands == [to.HandBack(0), to.HandBack(1), to.Hold()]
    assert play.at(1.1, to.CopyAccepted(0)) == []
    assert play.at(1.2, to.CopyAccepted(1)) == [to.Complete(1)]
    assert play.at(1.3, to.Completed(1)) == [to.Pull()]


@pytest.mark.parametrize(
    "over", [to.Completed(1), to.LeaseGone(1), to.CopyRefused(1)], ids=lambda over: type(over).__name__
)
def test_nothing_begins_while_a_message_is_split(over: to.Event) -> None:
    """A copy that killed the agent before the message is removed would bring it back whole."""
    play = Play()
    play.arrive(1.0, task(0), task(1), redelivered=True)
    play.at(1.1, to.CopyAccepted(0))
    assert play.arrive(1.2, task(0, hop=1), delivery=2) == []
    if isinstance(over, to.Completed):
        play.at(1.3, to.CopyAccepted(1))
    assert to.Prepare(0, (2,)) in play.at(1.4, over)


def test_a_second_delivery_of_one_task_runs() -> None:
    """A lost lock is no crime: only recorded crashes count."""
    assert Play().arrive(1.0, task(0), redelivered=True)[0] == to.Prepare(0, (0,))


def test_a_crash_is_noted_in_the_history_of_its_task() -> None:
    """Noted in its history, so that it counts on whatever node it comes to next."""
    uid = f"{INCARNATION}:0"
    play = Play(crashes={uid: CrashCount(alone=1, last_at=77.0)})
    history = (Attempt(1, DIED, "host", 77.0),)
    expected = [to.ForgetCrashes(uid), to.HandBack(0, 0.0, None, history, "isolation"), to.Hold()]
    assert play.arrive(1.0, task(0), redelivered=True) == expected


def test_a_new_message_with_a_task_that_killed_the_agent_is_split() -> None:
    """All of it goes back, as after a redelivery: what stayed here would wait without end."""
    play = Play(crashes={f"{INCARNATION}:1": CrashCount(alone=1)})
    commands = play.arrive(1.0, task(0), task(1), task(2))
    assert commands == [*(to.HandBack(number, reason="isolation") for number in range(3)), to.Hold()]
    done = [play.at(2.0, to.CopyAccepted(number)) for number in range(3)]
    assert to.Complete(1) in done[-1]
    play.at(2.1, to.Completed(1))
    assert play.arrive(3.0, task(0, hop=1), delivery=2)[0] == to.Prepare(0, (3,))


def test_a_task_that_killed_three_agents_ends_as_poisoned() -> None:
    """Two told by its history, one by this node."""
    uid = f"{INCARNATION}:0"
    play = Play(crashes={uid: CrashCount(alone=1)})
    history = (Attempt(1, DIED, "a", 1.0), Attempt(1, "other", "b", 2.0), Attempt(1, DIED, "b", 3.0))
    commands = play.arrive(1.0, task(0, history=history), redelivered=True)
    assert commands[0] == to.ForgetCrashes(uid)
    assert isinstance(commands[1], to.SendResult)
    assert commands[1].verdict is not None
    assert commands[1].verdict.kind == "TaskPoisoned"
    assert str(MAX_CRASHES) in commands[1].verdict.error


def test_a_task_that_was_in_two_crashes_runs_alone() -> None:
    """It waits until the other slots are empty, and nothing starts beside it: its next death will tell."""
    uid = f"{INCARNATION}:1"
    play = Play(slots=2, crashes={uid: CrashCount(in_company=2)})
    play.arrive(1.0, task(0))
    play.run(1.0)
    assert play.arrive(1.1, task(1), delivery=2, redelivered=True) == [to.Hold()]
    play.at(2.0, ended(0))
    assert play.at(2.0, to.Freed(0)) == [to.Prepare(0, (1,))]
    play.run(2.0, 1)
    assert play.at(3.0, ended(1)) == [to.SendResult(1), to.Pull()]
    play.at(3.0, to.Freed(0))
    assert to.ForgetCrashes(uid) in play.at(3.1, to.ResultsAccepted([1]))


def test_what_waits_behind_a_straggler_is_handed_back() -> None:
    """When every slot has run one task for too long, the others of its message go to other agents."""
    play = Play()
    play.arrive(1.0, task(0), task(1), task(2))
    play.run(1.0)
    assert play.scheduler.next_deadline() is not None
    assert play.at(1.0 + STRAGGLER - 0.01, to.Tick()) == []
    back = play.at(1.0 + STRAGGLER, to.Tick())
    assert back == [to.HandBack(1, reason="straggler"), to.HandBack(2, reason="straggler")]


def test_many_wait_behind_a_straggler_for_as_long_as_their_copies_would_take() -> None:
    """A task that met a busy machine for a moment does not make hundreds of messages of a few."""
    play = Play()
    many = 150
    play.arrive(1.0, *(task(number) for number in range(many + 1)))
    play.run(1.0)
    assert COPY * many > STRAGGLER
    assert play.at(1.0 + COPY * many - 0.001, to.Tick()) == []
    assert play.scheduler.next_deadline() == pytest.approx(1.0 + COPY * many)
    back = play.at(1.0 + COPY * many, to.Tick())
    assert back == [to.HandBack(number, reason="straggler") for number in range(1, many + 1)]


def test_where_tasks_are_long_nothing_waits_long_behind_one() -> None:
    """They may have ridden together because their sender did not know how long they take."""
    play = Play(slots=2)
    play.arrive(1.0, task(0), task(1))
    play.run(1.0, 0, slot=0)
    play.run(1.0, 1, slot=1)
    for number in (0, 1):
        play.at(11.0, ended(number, duration=10.0))
        play.at(11.0, to.Freed(number))
    more = [task(number) for number in range(2, 8)]
    assert play.arrive(11.0, *more, delivery=2)[2:4] == [
        to.HandBack(6, reason="excess"),
        to.HandBack(7, reason="excess"),
    ]
    play.run(11.0, 2, slot=0)
    play.run(11.0, 3, slot=1)
    assert play.at(11.0 + STRAGGLER - 0.01, to.Tick()) == []
    assert play.at(11.0 + STRAGGLER, to.Tick()) == [
        to.HandBack(4, reason="straggler"),
        to.HandBack(5, reason="straggler"),
    ]


@given(st.integers(1, 3), st.integers(2, 40), st.floats(0.02, 0.09))
def test_no_more_than_a_second_of_work_waits_while_slots_are_busy(
    slots: int, number: int, duration: float
) -> None:
    """What goes beyond is handed back, the last ones first, as soon as it is known how long they take."""
    play = Play(slots=slots)
    commands = play.arrive(1.0, *(task(index) for index in range(slots + number)))
    for index in range(slots):
        play.run(1.0, index, slot=index)
    assert not any(isinstance(command, to.HandBack) for command in commands)
    commands = play.at(1.0 + duration, ended(0, duration=duration))
    commands += play.at(1.0 + duration, to.Freed(0))
    waiting = range(slots, slots + number)
    back = [command for command in commands if isinstance(command, to.HandBack)]
    kept = [index for index in waiting if index not in {command.task for command in back}]
    assert all(command.reason == "excess" for command in back)
    assert [command.task for command in back] == list(waiting)[len(kept) :]
    assert len(kept) - 3 <= max(slots, MOST_WAIT * slots / duration)
    assert not back or (len(kept) + 1) * duration > MOST_WAIT * slots - 1e-9


def test_a_slot_that_moves_is_no_straggler() -> None:
    """Two slots, one of them stuck: the tasks behind go through the other one."""
    play = Play(slots=2)
    play.arrive(1.0, task(0), task(1), task(2), task(3))
    play.run(1.0, 0, slot=0)
    play.run(1.09, 1, slot=1)
    assert play.at(1.15, to.Tick()) == []
    play.at(1.16, ended(1))
    assert play.at(1.16, to.Freed(1)) == [to.Prepare(1, (2,))]


def test_nothing_is_pulled_early_while_every_slot_is_stuck() -> None:
    """Else messages would come and be handed back without end."""
    play = Play()
    play.arrive(1.0, task(0))
    play.run(1.0)
    play.at(1.001, ended(0, duration=0.001))
    play.at(1.001, to.Freed(0))
    assert play.arrive(2.0, task(1), delivery=2) == [to.Prepare(0, (1,))]
    play.run(2.0, 1)
    assert play.at(2.0 + STRAGGLER, to.Tick()) == [to.Hold()]
    assert play.at(9.0, to.Tick()) == []


def test_a_young_task_waits_for_no_document() -> None:
    """It cannot have been cancelled a second ago: it did not exist."""
    play = Play()
    play.arrive(1.0, task(0), age=0.5)
    assert play.at(1.4, to.Prepared(0)) == [to.Start(0, (0,))]


@pytest.mark.parametrize("old", [{"age": 5.0}, {"hop": 1}])
def test_an_old_task_waits_for_the_document(old: dict[str, Any]) -> None:
    """One that has waited in the queue, or was handed back, starts on a fresh copy only."""
    play = Play()
    play.arrive(1.0, task(0, hop=old.get("hop", 0)), age=old.get("age", 0.0))
    assert play.all(1.1, to.Prepared(0)) == [to.ReadCancellation(SESSION)]
    assert play.all(1.2, to.CancellationUnread(SESSION)) == []
    assert play.all(2.3, to.Tick()) == [to.ReadCancellation(SESSION)]
    assert play.all(2.4, to.CancellationRead(SESSION, None, 2.3)) == [to.Start(0, (0,))]


def test_a_copy_that_is_a_second_old_no_longer_serves() -> None:
    """A task that begins later than that waits for a new one."""
    play = Play()
    play.arrive(1.0, task(0), age=5.0)
    play.all(1.1, to.Prepared(0))
    play.all(1.2, to.CancellationRead(SESSION, None, 1.1))
    play.all(1.3, ended(0))
    play.all(1.3, to.Freed(0))
    play.arrive(1.9, task(1), delivery=2, age=5.0)
    assert play.all(2.05, to.Prepared(0)) == [to.Start(0, (1,))]
    play.all(2.1, ended(1))
    play.all(2.1, to.Freed(0))
    play.arrive(2.1, task(2), delivery=3, age=5.0)
    assert to.Start(0, (2,)) not in play.all(2.2, to.Prepared(0))


def test_a_cancelled_task_never_starts() -> None:
    """Neither the one in the slot nor the one that waits."""
    play = Play()
    play.arrive(1.0, task(0), task(1), age=5.0)
    play.all(1.1, to.Prepared(0))
    commands = play.all(1.2, to.CancellationRead(SESSION, document(0, 1), 1.1))
    assert commands == [cancelled(1), cancelled(0), to.Stop(0)]
    play.all(1.3, to.Freed(0))
    assert play.all(1.4, to.ResultsAccepted([0, 1])) == [to.Complete(1)]


def test_a_running_task_is_killed_when_it_is_cancelled() -> None:
    """The document is read again while it runs; the result is sent when nothing of it is left."""
    play = Play()
    play.arrive(1.0, task(0))
    play.run(1.0)
    assert play.all(1.25, to.Tick()) == [to.ReadCancellation(SESSION)]
    assert play.all(1.3, to.CancellationRead(SESSION, None, 1.25)) == []
    assert play.all(1.85, to.Tick()) == [to.ReadCancellation(SESSION)]
    assert play.all(1.9, to.CancellationRead(SESSION, document(0), 1.85)) == [to.Stop(0)]
    assert play.all(2.2, to.Freed(0)) == [cancelled(0), to.Pull()]


def test_a_cancelled_task_behind_another_in_a_slot_is_taken_back() -> None:
    """The child would begin it by itself, however long after the cancellation; the others go on."""
    play = Play()
    play.learn(0.001)
    play.arrive(2.0, *(task(number) for number in range(1, 5)), delivery=2)
    assert play.at(2.0, to.Prepared(0)) == [to.Start(0, (1, 2, 3, 4))]
    for number in (1, 2):  # it moves, slower than was thought: no straggler
        play.at(2.0 + number * 0.09, ended(number, duration=0.09))
    assert play.at(2.2, to.CancellationRead(SESSION, document(4), 2.2)) == [to.Recall(0)]
    assert play.at(2.21, to.Recalled(0, (4,))) == [cancelled(4)]
    assert play.at(2.22, to.CancellationRead(SESSION, document(4), 2.21)) == []
    play.at(2.25, ended(3, duration=0.09))
    assert to.Complete(2) in play.at(2.3, to.ResultsAccepted([1, 2, 3, 4]))


def test_a_deleted_job_cancels_everything_of_its_session() -> None:
    """Whatever the incarnation."""
    play = Play()
    play.arrive(1.0, task(0))
    play.run(1.0)
    play.all(1.25, to.Tick())
    assert play.all(1.3, to.CancellationRead(SESSION, Cancellation(everything=True), 1.25)) == [to.Stop(0)]


def test_quick_tasks_cause_no_requests() -> None:
    """Over within a quarter of a second: no document is read for them."""
    play = Play()
    for turn in range(20):
        play.arrive(float(turn), task(turn), delivery=turn)
        play.run(float(turn), turn)
        play.all(turn + 0.1, ended(turn))
        play.all(turn + 0.1, to.Freed(0))
        assert play.all(turn + 0.15, to.ResultsAccepted([turn])) == [to.Complete(turn)]
        assert play.all(turn + 0.9, to.Tick()) == []


def test_draining_lets_tasks_finish_and_hands_back_the_rest() -> None:
    """What waits goes at once, uncharged; what runs has the grace, then it is stopped and handed back."""
    play = Play()
    play.arrive(1.0, task(0), task(1))
    play.run(1.0)
    commands = play.at(1.01, to.Drain(5.0))
    assert commands == [to.Announce("draining"), to.HandBack(1, reason="drain")]
    assert play.scheduler.next_deadline() == pytest.approx(1.25)
    assert play.at(6.01, to.Tick())[0] == to.Stop(0)
    assert play.at(6.5, to.Freed(0)) == [to.HandBack(0, reason="drain")]
    play.at(6.6, to.CopyAccepted(1))
    assert play.at(6.6, to.CopyAccepted(0)) == [to.Complete(1)]
    assert play.at(6.7, to.Completed(1)) == [to.Announce("exiting"), to.Exit("drained")]


def test_a_drain_that_has_nothing_to_do_is_over_at_once() -> None:
    """And nothing is pulled any more."""
    commands = Play().at(1.0, to.Drain(5.0))
    assert commands == [to.Announce("draining"), to.Announce("exiting"), to.Hold(), to.Exit("drained")]


def test_a_task_that_finishes_in_the_grace_is_not_handed_back() -> None:
    """Its result is sent and accepted, then the agent goes."""
    play = Play()
    play.arrive(1.0, task(0))
    play.run(1.0)
    play.at(1.1, to.Drain(5.0))
    assert play.at(2.0, ended(0)) == [to.SendResult(0)]
    play.at(2.0, to.Freed(0))
    play.at(2.1, to.ResultsAccepted([0]))
    assert to.Exit("drained") in play.at(2.2, to.Completed(1))


def test_a_draining_agent_exits_although_the_broker_accepts_nothing() -> None:
    """What is not settled is left to its lock, and runs again elsewhere."""
    play = Play()
    play.arrive(1.0, task(0))
    play.run(1.0)
    play.at(1.1, to.Drain(0.0))
    play.at(1.2, to.Freed(0))
    exits = play.at(1.1 + SETTLE, to.Tick())
    assert exits[-1] == to.Exit("drained, some tasks are left to their locks")


def test_nothing_is_pulled_while_results_are_blocked() -> None:
    """While the broker takes nothing, results do not pile up."""
    play = Play(slots=2)
    assert play.at(1.0, to.Blocked(True)) == [to.Hold()]
    assert play.at(2.0, to.Blocked(False)) == [to.Pull()]


def test_an_idle_agent_looks_once_more_before_it_goes() -> None:
    """It says so first; what comes then brings it back."""
    play = Play(idle_exit=60.0)
    assert play.scheduler.next_deadline() == 60.0
    look = [to.Announce("exiting"), to.LastLook(), to.Hold()]
    assert play.at(60.0, to.Tick()) == look
    assert play.arrive(60.5, task(0)) == [to.Announce("ready"), to.Prepare(0, (0,))]
    play.run(60.5)
    play.at(61.0, ended(0))
    play.at(61.0, to.Freed(0))
    play.at(61.0, to.ResultsAccepted([0]))
    play.at(61.0, to.Completed(1))
    assert play.scheduler.next_deadline() == 121.0
    assert play.at(121.0, to.Tick()) == look
    assert play.at(123.0, to.NothingLeft()) == [to.Exit("idle")]
    assert play.at(124.0, to.Tick()) == []


def test_an_agent_with_tasks_of_a_broadcast_is_not_idle() -> None:
    """It counts from when the last of them is over."""
    play = Play(idle_exit=60.0)
    play.at(10.0, to.Beside(1))
    assert play.scheduler.next_deadline() is None
    assert play.at(100.0, to.Tick()) == []
    play.at(110.0, to.Beside(0))
    assert play.scheduler.next_deadline() == 170.0


def test_a_drain_waits_for_the_tasks_of_broadcasts_as_long_as_for_others() -> None:
    play = Play()
    play.at(1.0, to.Beside(1))
    assert not any(isinstance(each, to.Exit) for each in play.at(2.0, to.Drain(5.0)))
    assert play.at(3.0, to.Beside(0)) == [to.Announce("exiting"), to.Exit("drained")]
    play = Play()
    play.at(1.0, to.Beside(1))
    play.at(2.0, to.Drain(5.0))
    assert isinstance(play.at(2.0 + 5.0 + SETTLE, to.Tick())[-1], to.Exit)


def unable(number: int, error: str = "no room") -> to.Unable:
    return to.Unable(number, error, 1000.0)


def failed_by_node(play: Play, number: int, now: float) -> list[to.Command]:
    """A message of one task that the node cannot run; what the scheduler says to that."""
    play.arrive(now, task(number), delivery=10 + number)
    play.at(now, to.Prepared(0))
    commands = play.at(now, unable(number))
    return commands + play.at(now, to.Freed(0))


def test_a_task_that_the_node_cannot_run_is_handed_back_uncharged() -> None:
    """Its history tells; the next one runs here."""
    play = Play()
    past = Attempt(1, f"{UNABLE}: no room", "host", 1000.0)
    assert to.HandBack(0, history=(past,), reason="node") in failed_by_node(play, 0, 1.0)
    play.at(1.0, to.CopyAccepted(0))
    play.arrive(1.1, task(1), delivery=2)
    assert play.at(1.1, to.Prepared(0)) == [to.Start(0, (1,))]


def test_an_agent_that_fails_three_times_in_a_row_steps_back() -> None:
    """It hands back what waits, lets other tasks end, and exits as unfit."""
    play = Play(slots=2)
    play.arrive(1.0, task(0))
    play.run(1.0, 0)
    play.arrive(1.0, task(1), delivery=2)
    for number in range(1, 4):
        if number > 1:
            play.arrive(1.0, task(number), delivery=1 + number)
        play.at(1.0, to.Prepared(1))
        commands = play.at(1.0, unable(number)) + play.at(1.0, to.Freed(1))
        assert (to.StepBack("no room") in commands) == (number == 3)
        play.at(1.0, to.CopyAccepted(number))
        play.at(1.0, to.Completed(1 + number))
    assert to.Announce("draining") in commands
    assert to.Stop(0) not in play.at(5000.0, to.Tick())
    play.at(5000.0, ended(0))
    play.at(5000.0, to.Freed(0))
    play.at(5000.0, to.ResultsAccepted([0]))
    assert to.Exit("unfit") in play.all(5000.0, to.Completed(1))


def test_a_success_in_between_proves_the_node() -> None:
    """Failures that are not in a row have their own reasons."""
    play = Play()
    for number in range(8):
        if number % 3 == 2:
            play.arrive(1.0, task(number), delivery=10 + number)
            play.run(1.0, number)
            play.at(1.0, ended(number))
            play.at(1.0, to.Freed(0))
        else:
            assert not any(isinstance(each, to.StepBack) for each in failed_by_node(play, number, 1.0))
    assert play.scheduler.state == "ready"


def test_a_task_that_no_node_can_run_has_an_outcome_at_last() -> None:
    """It is tried ever later; twenty times are its own doing."""
    past = Attempt(1, f"{UNABLE}: no room", "other", 1.0)
    play = Play()
    play.arrive(1.0, replace(task(0), history=(past,) * 3))
    play.at(1.0, to.Prepared(0))
    back = [each for each in play.at(1.0, unable(0)) if isinstance(each, to.HandBack)]
    assert [each.delay for each in back] == [8.0]
    last = Play()
    last.arrive(1.0, replace(task(0), history=(past,) * (MAX_UNABLE - 1)))
    last.at(1.0, to.Prepared(0))
    sent = [each for each in last.at(1.0, unable(0)) if isinstance(each, to.SendResult)]
    assert [each.verdict.kind for each in sent if each.verdict] == ["WorkerDied"]


def test_a_task_after_which_nodes_are_damaged_is_tried_few_times() -> None:
    """It may have done that itself. Failures of nodes before it began do not count."""
    lost, past = (Attempt(1, f"{text}: gone", "other", 1.0) for text in (LOST, UNABLE))
    for times in range(MAX_LOST):
        play = Play()
        play.arrive(1.0, replace(task(0), history=(past,) * 5 + (lost,) * times))
        play.run(1.0)
        commands = play.at(1.0, to.Unable(0, "gone", 1000.0, began=True))
        ends = [each.verdict.kind for each in commands if isinstance(each, to.SendResult) and each.verdict]
        assert ends == (["WorkerDied"] if times == MAX_LOST - 1 else [])
