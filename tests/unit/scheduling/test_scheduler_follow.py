"""Tasks that come while a slot works, and run in it after what it has: it never has to ask for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from batchflow.protocol.documents import Cancellation
from batchflow.protocol.packing import MOST_WORK
from batchflow.protocol.wire import Reference, TaskItem
from node_agent.scheduling import events as to
from node_agent.scheduling.cancellation import FRESH
from node_agent.scheduling.load_policy import AHEAD, SOON, STRAGGLER
from node_agent.scheduling.placement import MOST_FOLLOWING
from node_agent.scheduling.scheduler import Scheduler
from tests.support.agent_world import INCARNATION, task


class Learned:
    """A scheduler of one slot that knows how long its commands take; task 0 of one of them runs."""

    def __init__(self, *commands: tuple[str, float], slots: int = 1) -> None:
        self.scheduler = Scheduler(slots, "host", None, 0.0)
        self.scheduler.handle(to.Tick(), 0.0)
        self.delivery = 100
        for number, (command, duration) in enumerate(commands):
            self.arrive(0.0, replace(task(number), command=command))
            self.do(0.0, to.Prepared(0))
            self.do(0.0, to.Ended(number, None, None, 0.0, duration, 0.5))
            self.do(0.0, to.Freed(0))
            self.do(0.0, to.ResultsAccepted([number]))
        self.first = len(commands)

    def do(self, now: float, event: to.Event) -> list[to.Command]:
        return self.scheduler.handle(event, now)

    def arrive(self, now: float, *tasks: TaskItem, age: float = 0.0) -> list[to.Command]:
        self.delivery += 1
        return self.do(now, to.Arrived(self.delivery, tasks, False, age))

    def begin(self, now: float = 1.0, **changes: Any) -> int:
        """Let a task run; its number."""
        self.arrive(now, task(self.first, **changes))
        self.do(now, to.Prepared(0))
        return self.first


def follows(commands: list[to.Command]) -> list[tuple[int, ...]]:
    return [each.tasks for each in commands if isinstance(each, to.Follow)]


def test_what_comes_while_short_tasks_run_follows_them() -> None:
    """And the next message is pulled when it has begun, not before, for it is the one in advance."""
    play = Learned(("ok", 0.02))
    first = play.begin()
    commands = play.arrive(1.0, task(2))
    assert follows(commands) == [(first + 1,)]
    assert to.Hold() in commands
    commands = play.do(1.02, to.Ended(first, None, None, 0.0, 0.02, 0.5))
    assert to.Pull() in commands
    assert [item.uid for item, _ in play.scheduler.placement.running()] == [task(2).uid]


def test_many_follow_when_they_take_next_to_nothing() -> None:
    """As long as all of it is a few milliseconds, more is pulled; no slot goes on like this without end."""
    play = Learned(("ok", 0.0001))
    first = play.begin()
    followed = [follows(play.arrive(1.0, task(number))) for number in range(2, 42)]
    assert followed == [[(first + number,)] for number in range(1, 41)]
    for number in range(first, first + 41):
        play.do(1.0, to.Ended(number, None, None, 0.0, 0.0001, 0.5))
    play.do(1.0, to.Freed(0))
    play = Learned(("ok", 0.0001))
    first = play.begin()
    for number in range(MOST_FOLLOWING):
        assert follows(play.arrive(1.0, task(2 + number)))
        play.do(1.0, to.Ended(first + number, None, None, 0.0, 0.0001, 0.5))
    assert not follows(play.arrive(1.0, task(9999)))


@pytest.mark.parametrize(
    "newcomer",
    [
        pytest.param(task(5, bundle="other"), id="other files"),
        pytest.param(replace(task(5), command="unknown"), id="an unknown command"),
        pytest.param(replace(task(5), command="long"), id="a long command"),
        pytest.param(replace(task(5), params=Reference("blob", 10)), id="arguments by reference"),
        pytest.param(replace(task(5), function=True, pickle="a" * 64), id="a function to be fetched"),
    ],
)
def test_a_task_that_needs_a_slot_of_its_own_does_not_follow(newcomer: TaskItem) -> None:
    """It waits until a slot is free: it is not known to be short, or needs something fetched."""
    play = Learned(("ok", 0.02), ("long", AHEAD))
    first = play.begin()
    assert not follows(play.arrive(1.0, newcomer))
    play.do(1.02, to.Ended(first, None, None, 0.0, 0.02, 0.5))
    assert to.Prepare(0, (first + 1,)) in play.do(1.02, to.Freed(0))


def test_nothing_follows_a_long_task() -> None:
    """Another node may begin it sooner."""
    play = Learned(("ok", AHEAD))
    play.begin()
    assert not follows(play.arrive(1.0, task(5)))


def test_what_waits_for_a_document_does_not_follow() -> None:
    """It is cancelled, or may be: a child begins by itself what follows."""
    play = Learned(("ok", 0.02))
    first = play.begin()
    assert not follows(play.arrive(1.01, task(5), age=FRESH + 1.0))
    document = Cancellation({INCARNATION: ((6, 6),)})
    read = to.CancellationRead(("job", "client"), document, 1.01)
    assert follows(play.do(1.02, read)) == [(first + 1,)]


def test_a_pack_follows_whole_or_not_at_all() -> None:
    """So that its message is the one in advance until it begins."""
    play = Learned(("ok", 0.02))
    first = play.begin()
    most = round(AHEAD / 0.02)
    assert not follows(play.arrive(1.0, *(task(number) for number in range(2, 3 + most))))
    commands = play.do(1.02, to.Ended(first, None, None, 0.0, 0.02, 0.5))
    assert not follows(commands)
    play = Learned(("ok", 0.02))
    first = play.begin()
    assert follows(play.arrive(1.0, *(task(number) for number in range(2, 6)))) == [
        tuple(range(first + 1, first + 5))
    ]


def test_the_next_pack_is_pulled_when_little_of_a_full_one_is_left() -> None:
    """Not when it begins, for another agent may need it sooner. And it follows before the slot is free."""
    play = Learned(("ok", 0.001))
    pack = round(MOST_WORK / 0.001)
    commands = play.arrive(1.0, *(task(number) for number in range(1, 1 + pack)))
    assert to.Hold() in commands
    play.do(1.0, to.Prepared(0))
    left = round(SOON / 0.001)
    for number in range(1, pack):
        commands = play.do(1.0 + number / 1000, to.Ended(number, None, None, 0.0, 0.001, 0.5))
        assert (to.Pull() in commands) == (pack - number - 1 == left)
    assert follows(play.arrive(2.0, *(task(number) for number in range(200, 200 + pack))))


def test_two_that_fill_a_pack_follow_one_that_runs() -> None:
    """Java programs of 45 ms: the slot goes on with the next two."""
    play = Learned(("ok", 0.045))
    first = play.begin()
    assert follows(play.arrive(1.0, task(2), task(3))) == [(first + 1, first + 2)]


def test_what_follows_a_straggler_is_taken_back() -> None:
    """As what stood behind it from the beginning."""
    play = Learned(("ok", 0.001))
    first = play.begin()
    assert follows(play.arrive(1.0, task(2)))
    assert to.Recall(0) in play.do(1.0 + STRAGGLER, to.Tick())
    commands = play.do(1.0 + STRAGGLER, to.Recalled(0, [first + 1]))
    assert to.HandBack(first + 1, reason="straggler") in commands
    assert not follows(play.arrive(1.2, task(3)))


def test_a_cancelled_follower_is_taken_back() -> None:
    """Before it begins."""
    play = Learned(("ok", 0.02))
    first = play.begin()
    assert follows(play.arrive(1.0, task(2)))
    document = Cancellation({INCARNATION: ((2, 2),)})
    assert to.Recall(0) in play.do(1.001, to.CancellationRead(("job", "client"), document, 1.001))
    [result] = [
        each for each in play.do(1.002, to.Recalled(0, [first + 1])) if isinstance(each, to.SendResult)
    ]
    assert result.verdict is not None
    assert result.verdict.kind == "TaskCancelled"


def test_followers_are_spread_over_the_slots() -> None:
    """Each slot gets its share of a pack that finds them all at work."""
    play = Learned(("ok", 0.01), slots=2)
    play.arrive(1.0, task(1), task(2))
    play.do(1.0, to.Prepared(0))
    play.do(1.0, to.Prepared(1))
    commands = play.arrive(1.0, *(task(number) for number in range(3, 7)))
    assert [each for each in commands if isinstance(each, to.Follow)] == [
        to.Follow(0, (3, 4)),
        to.Follow(1, (5, 6)),
    ]
