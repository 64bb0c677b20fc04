"""Lanes: what goes first in an agent's hands, and what is counted for each."""

from __future__ import annotations

from dataclasses import replace

from batchflow.model import Attempt
from batchflow.protocol.wire import TaskItem
from node_agent.scheduling import events as to
from node_agent.scheduling.fair_turns import FairTurns
from node_agent.scheduling.scheduler import DIED, MOST_HELD, Scheduler
from tests.support.agent_world import task
from tests.unit.scheduling.test_scheduler import ended

LANES = ["interactive", "normal", "normal"]


class Play:
    """A scheduler of one slot in a pool with lanes."""

    def __init__(self) -> None:
        self.turns = FairTurns(LANES)
        self.scheduler = Scheduler(1, "host", None, 0.0, turns=self.turns)
        assert self.at(0.0, to.Tick()) == [to.Pull()]

    def at(self, now: float, event: to.Event) -> list[to.Command]:
        found = self.scheduler.handle(event, now)
        for command in found:
            if isinstance(command, to.Pull | to.Hold):
                express = isinstance(command, to.Hold) and command.express
                self.turns.want(isinstance(command, to.Pull), now, express=express)
        return [each for each in found if not isinstance(each, to.ReadCancellation)]

    def arrive(self, now: float, lane: int, delivery: int, *tasks: TaskItem) -> list[to.Command]:
        self.turns.arrived(lane, now)
        return self.at(now, to.Arrived(delivery, tasks, False, 0.0, lane))

    def learn(self, duration: float) -> None:
        """Let task 0 come and go, so that it is known how long its like take."""
        self.arrive(0.0, 1, 100, task(0))
        self.at(0.0, to.Prepared(0))
        self.at(duration, ended(0, duration=duration))
        self.at(duration, to.Freed(0))


def test_an_interactive_task_is_welcome_while_short_ones_keep_the_slot_busy() -> None:
    """And no second one, as long as the first one waits."""
    play = Play()
    play.learn(0.03)
    commands = play.arrive(1.0, 1, 1, task(1), task(2), task(3))
    assert commands[-1] == to.Hold(express=True)
    play.at(1.0, to.Prepared(0))
    assert play.arrive(1.01, 0, 2, task(4))[-1] == to.Hold(express=False)


def test_an_interactive_task_is_not_asked_for_behind_a_long_one() -> None:
    """Another agent's slot may be free sooner."""
    play = Play()
    play.learn(5.0)
    assert play.arrive(10.0, 1, 1, task(1))[-1] == to.Hold(express=False)


def test_no_interactive_task_is_asked_for_while_a_task_runs_alone() -> None:
    """It would wait for that, and so would those that are behind it."""
    play = Play()
    play.learn(0.03)
    suspect = replace(task(1), history=(Attempt(1, DIED, "host", 1.0),))
    assert play.arrive(1.0, 1, 1, suspect)[-1] == to.Hold(express=False)


def test_no_interactive_task_is_asked_for_while_an_agent_holds_as_many_as_it_may() -> None:
    """However slowly results and copies leave."""
    play = Play()
    play.learn(0.03)
    assert play.arrive(1.0, 1, 1, *map(task, range(1, MOST_HELD)))[-1] == to.Hold(express=False)


def test_what_stands_behind_a_running_task_makes_way() -> None:
    """It is taken back and waits behind the interactive task, which is the next to run."""
    play = Play()
    play.learn(0.03)
    play.arrive(1.0, 1, 1, task(1), task(2), task(3))
    assert play.at(1.0, to.Prepared(0)) == [to.Start(0, (1, 2, 3))]
    assert to.Recall(0) in play.arrive(1.01, 0, 2, task(4))
    play.at(1.01, to.Recalled(0, [2, 3]))
    play.at(1.03, ended(1, duration=0.03))
    commands = play.at(1.03, to.Freed(0))
    assert [each.tasks for each in commands if isinstance(each, to.Prepare)] == [(4,)]


def test_lanes_are_charged_with_what_their_tasks_took() -> None:
    """However many they are: the lane with the short tasks has the next turns."""
    play = Play()
    play.learn(0.05)
    play.arrive(1.0, 1, 1, task(1))
    play.at(1.0, to.Prepared(0))
    play.at(3.0, ended(1, duration=2.0))
    play.at(3.0, to.Freed(0))
    for delivery in range(2, 6):
        play.arrive(3.0, 2, delivery, task(delivery))
        play.at(3.0, to.Prepared(0))
        play.at(3.0, ended(delivery, duration=0.01))
        play.at(3.0, to.Freed(0))
    assert 2 in play.turns.listening()
    assert 1 not in play.turns.listening()


def test_a_copy_costs_its_lane_nothing() -> None:
    """A task that is handed back has taken no time."""
    play = Play()
    play.learn(5.0)
    play.arrive(10.0, 1, 1, task(1))
    play.at(10.0, to.Prepared(0))
    play.turns.arrived(2, 20.0)
    before = play.turns.used(2)
    commands = play.at(20.0, to.Arrived(2, [task(2)], False, 0.0, 2))
    assert [each.task for each in commands if isinstance(each, to.HandBack)] == [2]
    assert play.turns.used(2) == before
