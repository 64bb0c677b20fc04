"""The lease book: a core with the clock passed in."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from node_agent.links.lock_deadlines import LockDeadlines


def book(duration: float = 30.0, now: float = 0.0) -> LockDeadlines[str]:
    deadlines: LockDeadlines[str] = LockDeadlines()
    deadlines.add("a", duration, now)
    return deadlines


def test_a_lease_is_due_at_a_third_of_its_lock() -> None:
    """Not before, and once until it is answered."""
    deadlines = book()
    assert deadlines.next_deadline() == 10.0
    assert deadlines.due(9.9) == []
    assert deadlines.due(10.0) == ["a"]
    assert deadlines.due(10.1) == []


def test_a_renewal_counts_from_when_it_was_asked_for() -> None:
    """The answer came late; the lock runs since the question, to be on the safe side."""
    deadlines = book()
    deadlines.due(10.0)
    deadlines.renewed("a", 10.0)
    assert deadlines.next_deadline() == 20.0
    assert deadlines.lapsed(39.9) == []
    assert deadlines.lapsed(40.0) == ["a"]


def test_a_failed_renewal_is_tried_again_soon() -> None:
    """Several tries fit in before the lock runs out."""
    deadlines = book()
    deadlines.due(10.0)
    deadlines.failed("a", 10.5)
    assert deadlines.next_deadline() == 13.0
    assert deadlines.due(13.0) == ["a"]


def test_a_lock_that_ran_out_is_told_once_and_gone() -> None:
    """Also while its renewal is under way; what the broker answers then changes nothing."""
    deadlines = book()
    deadlines.due(10.0)
    assert deadlines.next_deadline() == 30.0
    assert deadlines.lapsed(30.0) == ["a"]
    assert deadlines.lapsed(31.0) == []
    deadlines.renewed("a", 29.0)
    deadlines.failed("a", 31.0)
    assert len(deadlines) == 0
    assert deadlines.next_deadline() is None


def test_a_settled_lease_is_never_renewed() -> None:
    """Removing is idempotent."""
    deadlines = book()
    deadlines.remove("a")
    deadlines.remove("a")
    assert "a" not in deadlines
    assert deadlines.due(10.0) == []


class LockMachine(RuleBasedStateMachine):
    """Against a model that knows, for each lock, until when it was last granted."""

    def __init__(self) -> None:
        super().__init__()
        self.deadlines: LockDeadlines[int] = LockDeadlines()
        self.now = 0.0
        self.until: dict[int, float] = {}
        self.asked: dict[int, float] = {}
        self.durations: dict[int, float] = {}
        self.count = 0

    @rule(duration=st.sampled_from([3.0, 30.0]))
    def add(self, duration: float) -> None:
        self.count += 1
        self.deadlines.add(self.count, duration, self.now)
        self.durations[self.count] = duration
        self.until[self.count] = self.now + duration

    @rule(step=st.sampled_from([0.1, 1.0, 5.0, 31.0]))
    def pass_time(self, step: float) -> None:
        self.now += step
        gone = set(self.deadlines.lapsed(self.now))
        assert gone == {token for token, until in self.until.items() if until <= self.now}
        for token in gone:
            del self.until[token]
            self.asked.pop(token, None)
        for token in self.deadlines.due(self.now):
            assert token not in self.asked
            assert token in self.until
            self.asked[token] = self.now

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), granted=st.booleans())
    def answer(self, data: st.DataObject, granted: bool) -> None:
        token = data.draw(st.sampled_from(sorted(self.asked)))
        asked_at = self.asked.pop(token)
        if granted:
            self.deadlines.renewed(token, asked_at)
            self.until[token] = asked_at + self.durations[token]
        else:
            self.deadlines.failed(token, self.now)

    @precondition(lambda self: self.until)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(sorted(self.until)))
        self.deadlines.remove(token)
        del self.until[token]
        self.asked.pop(token, None)

    @invariant()
    def nothing_is_forgotten(self) -> None:
        """A lock that we hold is in the book, and its deadline is not after it runs out."""
        assert len(self.deadlines) == len(self.until)
        deadline = self.deadlines.next_deadline()
        assert (deadline is None) == (not self.until)
        assert deadline is None or deadline <= min(self.until.values())


TestLockMachine = LockMachine.TestCase
TestLockMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
