"""Tasks that require slots, memory, GPUs or tags, in the scheduler's hands."""

from __future__ import annotations

from typing import Any

import pytest

from batchflow.protocol.needs import KnownNode
from node_agent.scheduling import events as to
from node_agent.scheduling.reservations import FIRST, HELD_UP, MISFIT, NOT_YET, PAUSE
from node_agent.scheduling.scheduler import Scheduler
from tests.support.agent_world import task

NODE = KnownNode(2, memory=100, gpus=1, tags=frozenset({"ssd", "dedicated"}))


class Play:
    """A scheduler of a node with two slots, and a clock that is moved by hand."""

    def __init__(self, node: KnownNode = NODE) -> None:
        self.scheduler = Scheduler(node.slots, "host", None, 0.0, node=node)
        self.delivery = 0
        self.at(0.0, to.Tick())

    def at(self, now: float, *events: to.Event) -> list[to.Command]:
        commands = self.scheduler.handle_all(events, now)
        return [each for each in commands if not isinstance(each, to.ReadCancellation | to.Pull | to.Hold)]

    def arrive(self, now: float, *required: dict[str, Any] | None, hop: int = 0) -> list[to.Command]:
        """Let a message come with a task for each of these."""
        self.delivery += 1
        first = self.delivery * 100
        items = [task(first + place, requires=each, hop=hop) for place, each in enumerate(required)]
        return self.at(now, to.Arrived(self.delivery, items, False, 0.0))

    def end(self, now: float, number: int, slot: int) -> list[to.Command]:
        """Let a task that runs end, and its slot become free."""
        found = self.at(now, to.Ended(number, None, None, 1.0, 0.5, 0.5), to.Freed(slot))
        return [each for each in found if not isinstance(each, to.SendResult)]


def test_a_task_for_all_slots_runs_alone_and_its_slots_come_back() -> None:
    play = Play()
    assert play.arrive(1.0, {"slots": "all"}, None) == [to.Prepare(0, (0,))]
    assert play.scheduler.placement.is_full()
    play.at(1.0, to.Prepared(0))
    assert play.at(1.05, to.Tick()) == []
    assert play.end(1.06, 0, 0)[-1:] == [to.Prepare(0, (1,))]
    assert not play.scheduler.placement.is_full()


def test_a_task_for_all_slots_holds_up_others_until_they_are_free() -> None:
    """No other task begins meanwhile, so what is short makes room for it."""
    play = Play()
    play.arrive(1.0, None)
    play.at(1.0, to.Prepared(0))
    assert play.arrive(1.1, {"slots": 2}, None) == []
    assert play.end(1.5, 0, 0) == [to.Prepare(0, (1,))]
    assert play.scheduler.placement.open == 0


def test_a_task_that_does_not_fit_yet_holds_up_others_for_less_than_a_second_and_then_not_again() -> None:
    play = Play()
    play.arrive(1.0, None)
    play.at(1.0, to.Prepared(0))
    assert play.arrive(2.0, {"slots": 2}, None) == []
    deadline = play.scheduler.next_deadline()
    assert deadline == 2.0 + HELD_UP
    assert HELD_UP < 1.0
    assert play.at(deadline, to.Tick()) == [
        to.HandBack(1, delay=FIRST, reason="needs"),
        to.Prepare(1, (2,)),
    ]
    play.at(deadline, to.Prepared(1), to.CopyAccepted(1))
    play.end(3.0, 2, 1)
    found = play.arrive(4.0, {"slots": 2}, {"slots": "all"}, None, hop=20)
    assert found == [
        to.HandBack(3, delay=NOT_YET, reason="needs"),
        to.HandBack(4, delay=NOT_YET, reason="needs"),
        to.Prepare(1, (5,)),
    ]
    play.at(4.0, to.Prepared(1), to.CancellationRead(("job", "client"), None, 4.0))
    play.end(5.0, 5, 1)
    assert play.arrive(deadline + PAUSE, {"slots": 2}) == []


@pytest.mark.parametrize(
    "requires", [{"slots": 3}, {"memory": 101}, {"gpus": 2}, {"tags": ["ssd", "elsewhere"]}]
)
def test_a_task_that_never_fits_goes_back_at_once_and_later_each_time(requires: dict[str, Any]) -> None:
    play = Play()
    found = play.arrive(1.0, requires, None)
    assert found == [to.HandBack(0, delay=FIRST, reason="needs"), to.Prepare(0, (1,))]
    assert play.arrive(2.0, requires, hop=30) == [to.HandBack(2, delay=MISFIT, reason="needs")]
    refused = play.at(3.0, to.CopyRefused(0))
    assert [each.verdict.kind for each in refused if isinstance(each, to.SendResult) and each.verdict] == [
        "TaskRejected"
    ]


@pytest.mark.parametrize("requires", [{"memory": 60}, {"gpus": 1}])
def test_memory_and_gpus_are_one_tasks_own(requires: dict[str, Any]) -> None:
    play = Play()
    assert play.arrive(1.0, requires, requires) == [to.Prepare(0, (0,))]
    play.at(1.0, to.Prepared(0))
    assert play.end(1.5, 0, 0) == [to.Prepare(0, (1,))]


def test_small_requirements_run_side_by_side() -> None:
    play = Play()
    found = play.arrive(1.0, {"memory": 50, "tags": ["ssd"]}, {"memory": 50, "gpus": 1})
    assert found == [to.Prepare(0, (0,)), to.Prepare(1, (1,))]


def test_an_unreadable_requirement_is_rejected() -> None:
    (found,) = Play().arrive(1.0, {"cores": 1})
    assert isinstance(found, to.SendResult)
    assert found.verdict is not None
    assert found.verdict.kind == "TaskRejected"
    assert "cores" in found.verdict.error


def test_time_of_several_slots_counts_for_each_of_them() -> None:
    play = Play()
    play.arrive(1.0, {"slots": 2})
    play.at(1.0, to.Prepared(0))
    play.at(3.0, to.Tick())
    assert play.scheduler.busy_time.seconds == pytest.approx(2.0)
