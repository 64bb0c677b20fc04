"""What a session knows of its tasks: one outcome each, handed over once, its message completed after."""

from __future__ import annotations

from collections import Counter
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from batchflow.model import Status
from batchflow.protocol.durations import Durations
from batchflow.protocol.packing import PackingPolicy
from batchflow.protocol.wire import ResultItem
from batchflow.sessions.records.tracker import Acknowledgement, Entry, Tracker

FINAL = [Status.SUCCEEDED, Status.FAILED, Status.CANCELLED]


def make_entry(sequence: int, **fields: Any) -> Entry:
    plain = {"index": sequence, "uid": f"inc:{sequence}", "task_id": str(sequence), "command": "x.py"}
    return Entry(
        **{
            "sequence": sequence,
            **plain,
            "client": "c",
            "job": "j",
            "submitted_at": 1.0,
            "item": b"{}",
            **fields,
        }
    )


def outcome(entry: Entry, status: Status = Status.SUCCEEDED, value: Any = None) -> ResultItem:
    error = None if status is Status.SUCCEEDED else status.value
    return ResultItem(
        uid=f"inc:{entry.sequence}", client="c", job="j", task_id=entry.task_id, command="x.py",
        status=status, host="host", value=value, error=error,
    )  # fmt: skip


def take(tracker: Tracker, priority: Any = None) -> list[Entry]:
    pack = PackingPolicy(durations=Durations({"x.py": 0.001})).pack(tracker.sending)
    entries, items = tracker.take(pack, priority=priority)
    assert len(entries) == len(items)
    return entries


class TrackerMachine(RuleBasedStateMachine):
    """Tasks are submitted, sent, resolved, claimed and read in any order; a plain model keeps the books."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker = Tracker()
        self.entries: list[Entry] = []
        self.in_flight: list[Entry] = []
        self.sent: list[int] = []
        self.values: dict[int, Any] = {}
        self.claimed: set[int] = set()
        self.read: list[int] = []
        self.messages: list[tuple[list[Entry], list[str]]] = []

    def some(self, data: st.DataObject) -> Entry:
        return data.draw(st.sampled_from(self.entries))

    @rule(claimed=st.booleans(), priority=st.sampled_from([None, None, "bulk"]))
    def submit(self, claimed: bool, priority: str | None) -> None:
        entry = make_entry(self.tracker.next_sequence(), claimed=claimed, priority=priority)
        self.tracker.add(entry)
        self.entries.append(entry)
        if claimed:
            self.claimed.add(entry.sequence)

    @precondition(lambda self: not self.in_flight)
    @rule(priority=st.sampled_from([None, "bulk"]))
    def begin_to_send(self, priority: Any) -> None:
        self.in_flight = take(self.tracker, priority)
        assert all(entry.priority == priority for entry in self.in_flight)
        self.sent += [entry.sequence for entry in self.in_flight]
        assert not any(entry.done for entry in self.in_flight)

    @rule()
    def is_accepted(self) -> None:
        self.tracker.accepted(self.in_flight)
        assert all(entry.was_accepted for entry in self.in_flight)
        self.in_flight = []

    @precondition(lambda self: self.entries)
    @rule(data=st.data(), statuses=st.lists(st.sampled_from(FINAL), min_size=1, max_size=4))
    def a_message_comes(self, data: st.DataObject, statuses: list[Status]) -> None:
        """A message with several outcomes, duplicates among them."""
        completed: list[str] = []
        acknowledgement = Acknowledgement(lambda: completed.append("due"), len(statuses))
        waiting = []
        for number, status in enumerate(statuses):
            entry = self.some(data)
            value = (len(self.messages), number)
            first = entry.sequence not in self.values
            assert self.tracker.resolve(entry, outcome(entry, status, value), acknowledgement) is first
            if first:
                self.values[entry.sequence] = value
                waiting.append(entry)
            else:
                acknowledgement.deliver()
        self.messages.append((waiting, completed))

    @precondition(lambda self: self.entries)
    @rule(data=st.data(), status=st.sampled_from([Status.FAILED, Status.CANCELLED]))
    def client_gives_the_outcome(self, data: st.DataObject, status: Status) -> None:
        entry = self.some(data)
        first = entry.sequence not in self.values
        assert self.tracker.resolve(entry, outcome(entry, status)) is first
        self.values.setdefault(entry.sequence, None)

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        entry = self.some(data)
        self.tracker.claim(entry)
        self.claimed.add(entry.sequence)

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def read_the_task(self, data: st.DataObject) -> None:
        """Whoever holds the task reads it, any number of times."""
        entry = self.some(data)
        if entry.done:
            self.tracker.claim(entry)
            self.claimed.add(entry.sequence)
            entry.deliver()
            assert entry.result(entry.read()).value == self.values[entry.sequence]

    @rule()
    def read_results(self) -> None:
        entry = self.tracker.next_unclaimed()
        expected = [n for n in self.values if n not in self.claimed]
        if entry is None:
            assert not expected
            return
        assert entry.sequence == expected[0]
        assert entry.result(entry.read()).value == self.values[entry.sequence]
        self.read.append(entry.sequence)
        self.claimed.add(entry.sequence)

    @invariant()
    def outcomes_stay(self) -> None:
        for entry in self.entries:
            assert entry.done is (entry.sequence in self.values)
            assert entry.status.final is entry.done
            assert (self.tracker.find(entry.sequence) is entry) is not entry.done
        assert len(self.tracker) == len(self.entries) - len(self.values)
        assert list(self.tracker) == [entry for entry in self.entries if not entry.done]

    @invariant()
    def counts_add_up(self) -> None:
        counts = self.tracker.counts
        tally = Counter(entry.status.value for entry in self.entries)
        assert {status.value: getattr(counts, status.value) for status in Status} == {
            status.value: tally[status.value] for status in Status
        }
        assert counts.submitted == len(self.entries) == self.tracker.next_sequence()

    @invariant()
    def the_bytes_that_wait_are_known(self) -> None:
        assert self.tracker.outbox_bytes == sum(len(entry.item or b"") for entry in self.tracker.unsent())

    @invariant()
    def nothing_is_read_or_sent_twice(self) -> None:
        assert len(set(self.read)) == len(self.read)
        assert len(set(self.sent)) == len(self.sent)
        for priority in (None, "bulk"):
            sent = [number for number in self.sent if self.entries[number].priority == priority]
            assert sent == sorted(sent)

    @invariant()
    def what_may_still_be_sent_is_known(self) -> None:
        """A later session is told of what was sent, and of nothing else."""
        unsent = {entry.sequence for entry in self.entries if entry.item is not None}
        assert {entry.sequence for entry in self.tracker.unsent()} == unsent
        passed = min([self.tracker.next_unsent(), *(entry.sequence for entry in self.in_flight)])
        assert passed <= min(unsent, default=len(self.entries))
        beyond = self.tracker.sent_beyond(passed, self.in_flight)
        told = {number for first, last in beyond for number in range(first, last + 1)}
        assert not told & (unsent | {entry.sequence for entry in self.in_flight})
        if beyond:
            assert told | unsent | {entry.sequence for entry in self.in_flight} == set(
                range(passed, len(self.entries))
            )

    @invariant()
    def messages_are_completed_with_their_last_outcome(self) -> None:
        for waiting, completed in self.messages:
            completable = all(entry.acknowledgement is None for entry in waiting)
            assert completed == (["due"] if completable else [])


TrackerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestTracker = TrackerMachine.TestCase


@pytest.fixture
def tracker() -> Tracker:
    return Tracker()


def add(tracker: Tracker, number: int = 1) -> list[Entry]:
    entries = [make_entry(tracker.next_sequence() + offset) for offset in range(number)]
    for entry in entries:
        tracker.add(entry)
    return entries


def test_many_claims_do_not_pile_up(tracker: Tracker) -> None:
    """Claimed outcomes leave the queue of the unclaimed, though nobody reads that."""
    entries = add(tracker, 1000)
    for entry in entries:
        tracker.resolve(entry, outcome(entry))
        tracker.claim(entry)
    assert len(tracker.unclaimed) < 200
    assert tracker.next_unclaimed() is None


def test_outcomes_that_were_awaited_in_order_are_not_held(tracker: Tracker) -> None:
    """They came before anybody asked, and each goes when it is asked for."""
    entries = add(tracker, 10)
    for entry in entries:
        tracker.resolve(entry, outcome(entry))
    for left, entry in zip(range(9, -1, -1), entries, strict=True):
        tracker.claim(entry)
        assert len(tracker.unclaimed) == tracker.unread == left


def test_claims_in_the_middle_change_nothing_for_the_others(tracker: Tracker) -> None:
    """The order of arrival holds for what is left."""
    entries = add(tracker, 300)
    for entry in entries:
        tracker.resolve(entry, outcome(entry))
    for entry in entries[1::2]:
        tracker.claim(entry)
    assert [entry.sequence for entry in iter(tracker.next_unclaimed, None)] == list(range(0, 300, 2))


def test_a_task_cancelled_in_the_outbox_is_never_taken(tracker: Tracker) -> None:
    """It has its outcome; the next one goes out in its place."""
    first, second = add(tracker, 2)
    tracker.resolve(first, outcome(first, Status.CANCELLED))
    assert take(tracker) == [second]
    assert take(tracker) == []


def test_a_task_that_waited_and_whose_send_failed_stays_unsent(tracker: Tracker) -> None:
    """Until its outcome was delivered, a later session may go on with it: no message of it is owed."""
    held = make_entry(0)
    tracker.hold(held)
    add(tracker)
    tracker.release(held, b"item")
    pack = PackingPolicy(durations=Durations({"x.py": 0.001})).pack(tracker.sending)
    sent, _ = tracker.take(pack)
    assert sent[1:] == [held]
    assert tracker.next_unsent() == 0  # as a checkpoint asks while it is being sent
    tracker.accepted(sent[:1])
    tracker.resolve(held, outcome(held))
    held.acknowledgement = Acknowledgement(lambda: None, 1)
    assert (tracker.next_unsent(), tracker.sent_beyond(0, [])) == (0, [(1, 1)])
    held.deliver()
    assert tracker.next_unsent() == 2


def test_a_result_may_come_before_the_send_returns(tracker: Tracker) -> None:
    """Then the broker had the task, and acceptance changes nothing any more."""
    (entry,) = add(tracker)
    take(tracker)
    tracker.resolve(entry, outcome(entry, Status.FAILED), Acknowledgement(lambda: None, 1))
    assert entry.was_accepted
    tracker.accepted([entry])
    assert entry.status is Status.FAILED


def test_an_outcome_of_the_clients_own_proves_no_acceptance(tracker: Tracker) -> None:
    """A task that was cancelled, or could not be sent, never reached the broker."""
    (entry,) = add(tracker)
    tracker.resolve(entry, outcome(entry, Status.CANCELLED))
    assert not entry.was_accepted


def test_adopted_outcome_is_delivered_like_an_own_one(tracker: Tracker) -> None:
    """It is handed over once and counts among nobody's tasks."""
    completed: list[str] = []
    earlier = make_entry(7)
    tracker.adopt(earlier, outcome(earlier, value="old"), Acknowledgement(lambda: completed.append("due"), 1))
    assert tracker.counts.submitted == 0
    assert not completed
    entry = tracker.next_unclaimed()
    assert entry is earlier
    assert entry.result(entry.read()).value == "old"
    assert completed == ["due"]
    assert tracker.next_unclaimed() is None


def test_a_result_tells_what_the_client_knows_and_what_the_agent_says(tracker: Tracker) -> None:
    """Label, tag and time of submission are the session's own; what an agent echoes is not trusted."""
    entry = make_entry(0, index=5, tag={"k": 1}, task_id="label")
    tracker.add(entry)
    item = ResultItem(
        uid="inc:0", client="other", job="other", task_id="9", command="y.py", status=Status.SUCCEEDED,
        host="host", value=42, error=None, tag="forged", stdout="out",
    )  # fmt: skip
    tracker.resolve(entry, item)
    result = entry.result(entry.read())
    assert (result.task_id, result.job_id, result.client, result.command) == ("label", "j", "c", "x.py")
    assert (result.tag, result.index, result.submitted_at) == ({"k": 1}, 5, 1.0)
    assert (result.value, result.node, result.stdout) == (42, "host", "out")
