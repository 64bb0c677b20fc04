"""Tasks that expire: what has not begun by then never does, and what has begun goes on."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from batchflow.protocol.wire import TaskItem
from batchflow.retry import Failure, RetryPolicy
from node_agent.scheduling import events as to
from node_agent.scheduling.expiry import TOO_LATE, Expiries, is_expired
from node_agent.scheduling.state import Message, Task
from tests.support.agent_world import task
from tests.unit.scheduling.test_scheduler import Play, ended


def expiring(number: int, seconds: float, **changes: Any) -> TaskItem:
    return replace(task(number), expires=seconds, **changes)


def test_a_task_that_comes_too_late_ends_without_a_run() -> None:
    """Its message was older than the seconds that it has; its companion runs."""
    play = Play()
    assert play.arrive(1.0, expiring(0, 5.0), task(1), age=6.0) == [
        to.SendResult(0, TOO_LATE),
        to.Prepare(0, (1,)),
        to.Hold(),
    ]


def test_a_message_that_waited_on_the_node_counts_from_its_lock_for_expiry_alone() -> None:
    """Its task is in time, but it does not begin before it is known whether it is cancelled."""
    play = Play()
    arrived = to.Arrived(1, [expiring(0, 5.0)], False, age=60.0, age_at_lock=1.0)
    assert play.at(1.0, arrived) == [to.Prepare(0, (0,)), to.Hold()]
    asked = to.ReadCancellation(("job", "client"))
    assert asked in play.all(1.0, to.Prepared(0))
    assert play.at(1.1, to.CancellationRead(("job", "client"), None, 1.0)) == [to.Start(0, (0,))]


def test_a_task_that_waits_for_a_slot_ends_when_its_time_is_over() -> None:
    """The scheduler asks for a tick at that moment, and not before does the task end."""
    play = Play()
    play.arrive(1.0, task(0))
    play.run(1.0)
    play.arrive(1.0, expiring(1, 0.05), delivery=2)
    deadline = play.scheduler.next_deadline()
    assert deadline is not None
    assert deadline <= 1.05
    assert play.at(1.049, to.Tick()) == []
    assert play.at(1.05, to.Tick())[0] == to.SendResult(1, TOO_LATE)


def test_a_task_that_is_made_ready_for_too_long_never_begins() -> None:
    """Its files come when its time is over: the slot is freed, and the task has its outcome."""
    play = Play()
    play.arrive(1.0, expiring(0, 2.0))
    assert play.at(3.0, to.Tick()) == [to.Stop(0)]
    assert play.at(3.1, to.Freed(0)) == [to.SendResult(0, TOO_LATE), to.Pull()]


def test_a_task_that_has_begun_in_time_goes_on() -> None:
    """Its result is an ordinary one, however long it takes."""
    play = Play()
    play.arrive(1.0, expiring(0, 2.0))
    play.run(1.5)
    assert play.at(10.0, to.Tick()) == []
    assert play.at(11.0, ended(0))[0] == to.SendResult(0)


def test_a_slot_is_told_until_when_its_tasks_may_begin() -> None:
    """A node that stands still between the decision and the start does not begin what is too late."""
    play = Play()
    play.arrive(1.0, expiring(0, 0.25))
    play.run(1.1)
    assert play.scheduler.settlement.start_by([0]) == 1.25
    assert play.at(2.0, to.Freed(0))[0] == to.SendResult(0, TOO_LATE)


def test_what_stands_behind_another_task_in_its_slot_is_taken_back_and_ends() -> None:
    play = Play()
    play.learn(0.001)
    play.arrive(2.0, task(1), expiring(2, 0.02), task(3), delivery=2)
    assert play.at(2.0, to.Prepared(0)) == [to.Start(0, (1, 2, 3))]
    assert play.at(2.03, to.Tick()) == [to.Recall(0)]
    assert play.at(2.03, to.Recalled(0, [2, 3]))[0] == to.SendResult(2, TOO_LATE)


def test_a_copy_of_what_has_not_begun_has_the_seconds_that_are_left() -> None:
    """Its message was three seconds old when it came."""
    play = Play()
    play.arrive(1.0, task(0))
    play.run(1.0)
    (copy,) = play.arrive(2.0, expiring(1, 10.0), delivery=2, age=3.0)
    assert copy == to.HandBack(1, reason="straggler", expires=7.0)


def test_a_copy_of_what_has_begun_does_not_expire() -> None:
    """A retry, and a task that a drain stops."""
    play = Play()
    policy = RetryPolicy(max_attempts=2).fields()
    play.arrive(1.0, expiring(0, 2.0, retry=policy))
    play.run(1.0)
    (copy,) = [
        each
        for each in play.at(5.0, ended(0, Failure("TaskFailed", "ValueError"), error="it broke"))
        if isinstance(each, to.HandBack)
    ]
    assert copy.expires is None
    play.at(5.0, to.Freed(0))
    play.arrive(6.0, expiring(1, 1.0), delivery=2)
    play.run(6.0, 1)
    play.at(8.0, to.Drain(0.0))
    (copy,) = [each for each in play.at(8.1, to.Freed(0)) if isinstance(each, to.HandBack)]
    assert (copy.task, copy.expires) == (1, None)


@given(
    st.lists(st.tuples(st.sampled_from(["take in", "settle", "begin", "keep", "wait"]), st.floats(0.1, 90.0)))
)
def test_moments_of_settled_tasks_are_forgotten_and_no_other(steps: list[tuple[str, float]]) -> None:
    """However many tasks are settled long before they expire: each of the others is named in time."""
    expiries, now = Expiries(spare=4), 0.0
    held: dict[int, Task] = {}
    for number, (step, seconds) in enumerate(steps):
        oldest = next(iter(held.values()), None)
        if step == "take in":
            held[number] = Task.of(number, expiring(number, seconds), Message(1, 0.0, 1))
            expiries.take_in(held[number], 0.0, now)
        elif step == "wait":
            now += seconds / 10
        elif oldest is not None and step == "settle":
            del held[oldest.number]
        elif oldest is not None and step == "begin":
            oldest.expires_at = inf
        elif oldest is not None:
            expiries.watch(oldest)
        expiries.prune(held)
        late = {each.number for each in held.values() if is_expired(each, now)}
        assert late <= set(expiries.due(now))
        for each in late:
            del held[each]
    expiries.prune(held)
    assert len(expiries.due(1e6)) <= 2 * len(held) + 4


@given(
    st.lists(st.tuples(st.floats(0.01, 3.0), st.booleans()), min_size=1, max_size=6),
    st.lists(st.floats(0.0, 0.5), min_size=1, max_size=30),
)
def test_each_task_has_one_outcome_and_none_begins_too_late(
    tasks: list[tuple[float, bool]], steps: list[float]
) -> None:
    """Whatever is short or long: one slot, ticks at any moments, tasks of 0.3 seconds."""
    play, now = Play(), 1.0
    items = [expiring(n, seconds) if expires else task(n) for n, (seconds, expires) in enumerate(tasks)]
    commands = play.arrive(now, *items)
    outcomes: dict[int, bool] = {}
    running: tuple[int, float] | None = None
    for step in [*steps, *[0.3] * 40]:
        queue = list(commands)
        while queue:
            match queue.pop(0):
                case to.SendResult(number, verdict):
                    assert number not in outcomes
                    outcomes[number] = verdict is None
                case to.Prepare(slot):
                    queue += play.at(now, to.Prepared(slot))
                case to.Start(slot, numbers):
                    seconds, expires = tasks[numbers[0]]
                    assert not expires or now < 1.0 + seconds
                    running = (numbers[0], now + 0.3)
                case to.HandBack(number):
                    assert number not in outcomes
                    outcomes[number] = False
                    queue += play.at(now, to.CopyAccepted(number))
                case to.Stop(slot):
                    queue += play.at(now, to.Freed(slot))
        now += step
        commands = play.at(now, to.Tick())
        if running is not None and now >= running[1]:
            number, running = running[0], None
            commands += play.at(now, ended(number, duration=0.3))
            commands += play.at(now, to.Freed(0))
    assert set(outcomes) == set(range(len(tasks)))
