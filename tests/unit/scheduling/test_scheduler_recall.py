"""Tasks that stand behind a straggler in its slot: taken back, and run elsewhere."""

from __future__ import annotations

from node_agent.scheduling import events as to
from node_agent.scheduling.load_policy import STRAGGLER
from node_agent.scheduling.scheduler import Scheduler
from tests.support.agent_world import task


def learned(slots: int) -> Scheduler:
    """A scheduler that knows its command to take a millisecond."""
    scheduler = Scheduler(slots, "host", None, 0.0)
    scheduler.handle(to.Tick(), 0.0)
    scheduler.handle(to.Arrived(1, [task(0)], False, 0.0), 0.0)
    scheduler.handle(to.Prepared(0), 0.0)
    scheduler.handle(to.Ended(0, None, None, 0.0, 0.001, 0.5), 0.0)
    scheduler.handle(to.Freed(0), 0.0)
    scheduler.handle(to.ResultsAccepted([0]), 0.0)
    return scheduler


def test_companions_of_a_straggler_are_asked_back_and_handed_back() -> None:
    """On an agent of one slot there is no other slot to run them."""
    scheduler = learned(1)
    scheduler.handle(to.Arrived(2, [task(n) for n in (1, 2, 3)], False, 0.0), 1.0)
    assert to.Start(0, (1, 2, 3)) in scheduler.handle(to.Prepared(0), 1.0)
    deadline = scheduler.next_deadline()
    assert deadline is not None
    assert deadline <= 1.0 + STRAGGLER
    assert to.Recall(0) not in scheduler.handle(to.Tick(), 1.0 + STRAGGLER - 0.01)
    assert to.Recall(0) in scheduler.handle(to.Tick(), 1.0 + STRAGGLER)
    assert to.Recall(0) not in scheduler.handle(to.Tick(), 1.1 + STRAGGLER)
    back = scheduler.handle(to.Recalled(0, [2, 3]), 1.1 + STRAGGLER)
    assert [each for each in back if isinstance(each, to.HandBack)] == [
        to.HandBack(2, reason="straggler"),
        to.HandBack(3, reason="straggler"),
    ]
    assert to.SendResult(1) in scheduler.handle(to.Ended(1, None, None, 0.0, 9.0, 0.5), 10.0)


def test_companions_of_a_straggler_go_to_another_slot() -> None:
    """Where there is one, they do not leave the node."""
    scheduler = learned(2)
    scheduler.handle(to.Arrived(2, [task(n) for n in range(1, 5)], False, 0.0), 1.0)
    scheduler.handle(to.Prepared(0), 1.0)
    scheduler.handle(to.Prepared(1), 1.0)
    for number in (3, 4):
        scheduler.handle(to.Ended(number, None, None, 0.0, 0.001, 0.5), 1.01)
    scheduler.handle(to.Freed(1), 1.01)
    assert to.Recall(0) in scheduler.handle(to.Tick(), 1.01 + STRAGGLER)
    commands = scheduler.handle(to.Recalled(0, [2]), 1.01 + STRAGGLER)
    assert to.Prepare(1, (2,)) in commands
    assert not any(isinstance(each, to.HandBack) for each in commands)


def test_a_slot_that_goes_on_is_not_asked() -> None:
    """A pack that takes long in all holds up no task, as long as its tasks are short."""
    scheduler = learned(1)
    scheduler.handle(to.Arrived(2, [task(n) for n in range(1, 9)], False, 0.0), 1.0)
    scheduler.handle(to.Prepared(0), 1.0)
    for number in range(1, 8):
        now = 1.0 + number * STRAGGLER * 0.9
        commands = scheduler.handle(to.Ended(number, None, None, 0.0, 0.001, 0.5), now)
        assert to.Recall(0) not in commands
