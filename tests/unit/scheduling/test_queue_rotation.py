"""Which of its task queues an agent listens to."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from node_agent.scheduling.queue_rotation import PATIENCE, QueueRotation


def test_an_idle_agent_listens_to_all_queues() -> None:
    """Whatever comes first, wherever, is taken at once."""
    turns = QueueRotation(3)
    assert turns.listening() == frozenset()
    turns.want(True, 0.0)
    assert turns.listening() == {0, 1, 2}
    assert turns.next_deadline() is None


def test_busy_queues_take_turns() -> None:
    """One message at a time, from one after the other."""
    turns = QueueRotation(2)
    turns.want(True, 0.0)
    turns.arrived(0, 0.0)
    turns.arrived(1, 0.0)
    order = []
    for _ in range(4):
        (queue,) = turns.listening()
        order.append(queue)
        turns.arrived(queue, 0.0)
    assert order == [0, 1, 0, 1]


def test_a_queue_that_gives_nothing_loses_its_turn() -> None:
    """It is listened to beside the next one, and has turns again when it gives something."""
    turns = QueueRotation(2)
    turns.want(True, 0.0)
    turns.arrived(0, 0.0)
    turns.arrived(1, 0.0)
    assert turns.listening() == {0}
    turns.advance(PATIENCE / 2)
    assert turns.listening() == {0}
    turns.advance(PATIENCE)
    assert turns.listening() == {0, 1}
    turns.arrived(1, PATIENCE)
    assert turns.listening() == {0, 1}
    turns.arrived(0, PATIENCE)
    assert turns.listening() == {1}


def test_patience_counts_only_while_messages_are_wanted() -> None:
    """No queue loses a turn that is not used."""
    turns = QueueRotation(2)
    turns.want(True, 0.0)
    turns.arrived(0, 0.0)
    turns.arrived(1, 0.0)
    turns.want(False, PATIENCE / 2)
    assert turns.next_deadline() is None
    turns.advance(100.0)
    turns.want(True, 100.0)
    assert turns.listening() == {0}
    assert turns.next_deadline() == 100.0 + PATIENCE


def test_one_queue_is_no_matter() -> None:
    """Listened to while anything is wanted, without a deadline."""
    turns = QueueRotation(1)
    turns.want(True, 0.0)
    for _ in range(3):
        assert turns.listening() == {0}
        assert turns.next_deadline() is None
        turns.arrived(0, 1.0)


class Listening(RuleBasedStateMachine):
    """Messages come from whatever is listened to, or was a moment ago; time passes."""

    @initialize(count=st.integers(1, 4))
    def begin(self, count: int) -> None:
        self.turns = QueueRotation(count)
        self.now = 0.0
        self.wanted = False

    @rule(wanted=st.booleans())
    def want(self, wanted: bool) -> None:
        self.wanted = wanted
        self.turns.want(wanted, self.now)

    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        self.turns.arrived(data.draw(st.integers(0, self.turns.count - 1)), self.now)

    @precondition(lambda self: self.turns.next_deadline() is not None)
    @rule()
    def wait(self) -> None:
        deadline = self.turns.next_deadline()
        assert deadline is not None
        assert deadline >= self.now
        self.now = deadline
        before = self.turns.listening()
        self.turns.advance(self.now)
        assert before <= self.turns.listening()

    @invariant()
    def something_is_listened_to(self) -> None:
        if hasattr(self, "turns"):
            assert bool(self.turns.listening()) == self.wanted

    @invariant()
    def in_the_end_all_are_listened_to(self) -> None:
        if not hasattr(self, "turns") or not self.wanted:
            return
        if self.turns.next_deadline() is None:
            assert self.turns.count == 1 or len(self.turns.listening()) == self.turns.count


TestListening = Listening.TestCase
TestListening.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
