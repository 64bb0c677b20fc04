"""The state of a mailbox: a result is shown once, completed when delivered, and kept where it must be."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batchflow.errors import BrokerError, LeaseLost
from batchflow.model import Event, Status
from batchflow.ports.broker import Delivery
from batchflow.protocol import wire
from batchflow.protocol.wire import EventItem, Reference, ResultItem, make_uid
from batchflow.sessions.receiving.mailbox_state import (
    Confirmed,
    Dropped,
    Fetch,
    MailboxState,
    Resolved,
    ResultMessage,
    Tell,
    UnreadLimits,
)
from batchflow.sessions.records.checkpoint import Checkpoint, DeliveryRecord
from batchflow.sessions.records.tracker import Entry, Tracker
from tests.unit.sessions.records.test_tracker import make_entry

PLENTY = UnreadLimits(1000, 1000, 10**9)
_numbers = count(1)


class OnDisk:
    """A spilled outcome."""

    def __init__(self, outcome: ResultItem) -> None:
        self._outcome = outcome

    def read(self) -> ResultItem:
        return self._outcome


def result(sequence: int, value: Any = None, *, incarnation: str = "me") -> ResultItem:
    uid = make_uid(incarnation, sequence)
    return ResultItem(
        uid=uid, client="c", job="j", task_id=str(sequence), command="x.py", status=Status.SUCCEEDED,
        host="host", value=value, error=None, started_at=9.0,
    )  # fmt: skip


def message(attachment: str, *items: ResultItem, body: bytes | None = None) -> ResultMessage[str]:
    number = next(_numbers)
    body = wire.join("results", [wire.encode(item) for item in items]) if body is None else body
    return ResultMessage(
        Delivery(body, f"m{number}", number, 1, f"lock{number}", enqueued_at=10.0), attachment
    )


class AttachedMailbox:
    """A mailbox state attached as "first", and its notifications."""

    def __init__(
        self, tasks: int = 0, *, limits: UnreadLimits = PLENTY, record: DeliveryRecord | None = None
    ) -> None:
        self.tracker = Tracker()
        self.notified = 0
        self.state = MailboxState[str]("me", self.tracker, limits, record, self._due)
        self.state.attachment = "first"
        for sequence in range(tasks):
            self.tracker.add(make_entry(sequence, uid=make_uid("me", sequence)))

    def _due(self) -> None:
        self.notified += 1

    def read(self) -> list[Any]:
        """Return the values of all unread results, which are delivered with this."""
        shown = []
        while (entry := self.tracker.next_unclaimed()) is not None:
            shown.append(entry.result(entry.read()).value)
        return shown

    def spill(self) -> int:
        """Spill results to disk as due; return how many."""
        spilled = 0
        for entry, outcome in self.state.overflow():
            self.state.spill(entry, OnDisk(outcome))
            spilled += 1
        return spilled


def a_record(*, submitted: int = 0, journal: Any = None, lost_by: float = 0.0) -> DeliveryRecord:
    """Loaded; an earlier holder, "old", has submitted so many tasks and read nothing."""
    checkpoint = Checkpoint()
    checkpoint.open("old")
    checkpoint.incarnations["old"].submitted = submitted
    record = DeliveryRecord("me", journal)
    record.enter(checkpoint, lost_by=lost_by)
    record.load(checkpoint)
    return record


# ---- settling


def test_message_is_completable_when_its_last_outcome_was_delivered() -> None:
    """Not before, and once."""
    mailbox = AttachedMailbox(2)
    first, second = result(0, "a"), result(1, "b")
    commands = mailbox.state.accept(message("first", first, second))
    assert [type(command) for command in commands] == [Resolved, Resolved]
    assert mailbox.state.held == 1
    assert mailbox.tracker.next_unclaimed() is not None
    assert not mailbox.state.take_completable()
    assert mailbox.read() == ["b"]
    assert len(mailbox.state.take_completable()) == mailbox.notified == 1
    assert not mailbox.state.take_completable()
    assert (mailbox.state.held, mailbox.state.held_bytes) == (0, 0)


def test_message_without_an_outcome_is_completable_at_once() -> None:
    """Events are told, and what cannot be read is dropped, and said so."""
    mailbox = AttachedMailbox()
    event = wire.encode(EventItem(make_uid("me", 0), "t", "log", "hello", 1.0))
    (told,) = mailbox.state.accept(message("first", body=wire.join("events", [event])))
    assert isinstance(told, Tell)
    assert isinstance(told.event, Event)
    (dropped,) = mailbox.state.accept(message("first", body=b"no results at all"))
    assert isinstance(dropped, Dropped)
    assert len(mailbox.state.take_completable()) == 2
    assert mailbox.state.held == 0


def test_messages_put_back_keep_their_place() -> None:
    """Messages that are put back come before those that became due meanwhile."""
    mailbox = AttachedMailbox(2)
    mailbox.state.accept(message("first", result(0)))
    mailbox.read()
    taken = mailbox.state.take_completable()
    mailbox.state.accept(message("first", result(1)))
    mailbox.read()
    mailbox.state.put_back(taken)
    completable = mailbox.state.take_completable()
    assert completable[0] is taken[0]
    assert len(completable) == 2


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (BrokerError("busy", retryable=True), True),
        (BrokerError("never"), False),
        (LeaseLost("gone"), False),
    ],
)
def test_a_completion_is_tried_again_where_it_can_succeed(error: BrokerError, again: bool) -> None:
    """By the opening that the message came by, and no other."""
    mailbox = AttachedMailbox()
    ours, lost = message("first"), message("earlier")
    assert mailbox.state.not_completed(ours, error) is again
    assert not mailbox.state.not_completed(lost, error)
    assert mailbox.state.take_completable() == ([ours] if again else [])


# ---- showing once


def test_duplicate_is_completed_and_changes_nothing() -> None:
    """The first outcome is the one; the second is due at once, and tells that an agent knows of the task."""
    mailbox = AttachedMailbox(1, record=(record := a_record()))
    mailbox.state.accept(message("first", result(0, "one")))
    assert mailbox.state.accept(message("first", result(0, "other"))) == [Confirmed(0)]
    assert len(mailbox.state.take_completable()) == 1
    assert not record.is_consumed(make_uid("me", 0))
    assert mailbox.read() == ["one"]
    assert record.is_consumed(make_uid("me", 0))


def test_unread_outcome_waits_for_its_redelivered_message() -> None:
    """After the mailbox was lost its new message is held, and completed when it was read."""
    mailbox = AttachedMailbox(1, record=a_record())
    mailbox.state.accept(message("first", result(0, "one")))
    mailbox.state.lost()
    assert mailbox.state.held == 0
    mailbox.state.attachment = "second"
    again = message("second", result(0, "one"))
    mailbox.state.accept(again)
    assert not mailbox.state.take_completable()
    assert mailbox.read() == ["one"]
    assert mailbox.state.take_completable() == [again]


def test_reading_after_a_loss_completes_no_message_of_the_lost_attachment() -> None:
    """A result that was read before its message is redelivered is a duplicate then."""
    mailbox = AttachedMailbox(1, record=a_record())
    mailbox.state.accept(message("first", result(0, "one")))
    mailbox.state.lost()
    mailbox.state.attachment = "second"
    assert mailbox.read() == ["one"]
    assert not mailbox.state.take_completable()
    again = message("second", result(0, "one"))
    mailbox.state.accept(again)
    assert mailbox.state.take_completable() == [again]
    assert mailbox.read() == []


def test_own_outcome_takes_the_acknowledgement_of_a_late_message() -> None:
    """An agent's word for a cancelled task is held until the cancellation was read."""
    mailbox = AttachedMailbox(1, record=(record := a_record()))
    entry = mailbox.tracker.find(0)
    assert entry is not None
    mailbox.tracker.resolve(entry, replace(result(0), status=Status.CANCELLED, error="c"))
    mailbox.state.expect_message(entry)
    assert not record.is_consumed(entry.uid)
    assert mailbox.state.accept(message("first", result(0, "agent's"))) == [Confirmed(0)]
    assert not mailbox.state.take_completable()
    mailbox.read()
    assert len(mailbox.state.take_completable()) == 1
    assert record.is_consumed(entry.uid)


# ---- adopting


def test_result_of_an_earlier_holder_is_adopted_once() -> None:
    """It is counted among ours where it was owed, and marked where its holder may have shown it."""
    mailbox = AttachedMailbox(record=a_record(submitted=1, lost_by=10.0))
    mailbox.tracker.expect(1)
    received = result(0, "theirs", incarnation="old")
    assert mailbox.state.accept(message("first", received)) == []
    assert mailbox.state.accept(message("first", received)) == []
    assert len(mailbox.state.take_completable()) == 1
    entry = mailbox.tracker.next_unclaimed()
    assert entry is not None
    assert entry.repeated
    assert entry.result(entry.read()).value == "theirs"
    assert mailbox.read() == []
    assert len(mailbox.tracker) == 0


def test_outcome_of_a_task_that_did_not_run_is_marked_whenever_it_was_made() -> None:
    """It may have run before its message became a dead letter, and a holder that crashed have shown that."""
    mailbox = AttachedMailbox(record=a_record(submitted=2, lost_by=5.0))
    mailbox.tracker.expect(2)
    ran, died = result(0, incarnation="old"), replace(result(1, incarnation="old"), started_at=None)
    mailbox.state.accept(message("first", ran, died))
    marks = {entry.task_id: entry.repeated for entry in iter(mailbox.tracker.next_unclaimed, None)}
    assert marks == {"0": False, "1": True}


def test_unnamed_session_drops_results_of_earlier_holders() -> None:
    """It has no account; the message is completed."""
    mailbox = AttachedMailbox()
    mailbox.state.accept(message("first", result(0, incarnation="old")))
    assert len(mailbox.state.take_completable()) == 1
    assert mailbox.read() == []


class Journal(set[str]):
    """On the host."""

    record = set.add


def test_outcome_in_the_journal_is_owed_no_longer() -> None:
    """The checkpoint was not saved before the crash. The journal counts more: the outcome is not awaited."""
    journal = Journal([make_uid("old", 0)])
    mailbox = AttachedMailbox(record=(record := a_record(submitted=1, journal=journal)))
    mailbox.tracker.expect(1)
    mailbox.state.accept(message("first", result(0, "theirs", incarnation="old")))
    assert mailbox.read() == []
    assert len(mailbox.tracker) == 0
    assert record.is_behind(0)


# ---- results by reference


def test_a_result_by_reference_counts_when_it_was_fetched() -> None:
    """Its blob goes with its message, and its bytes count as held."""
    mailbox = AttachedMailbox(1)
    item = result(0, Reference("results/0.json", 5000))
    received = message("first", item)
    (fetch,) = mailbox.state.accept(received)
    assert isinstance(fetch, Fetch)
    held = mailbox.state.held_bytes
    assert mailbox.read() == []
    mailbox.state.fetched(result(0, "large"), 5000)
    assert mailbox.state.held_bytes == held + 5000
    assert mailbox.read() == ["large"]
    assert mailbox.state.take_completable() == [received]
    assert received.blobs == ["results/0.json"]
    assert mailbox.state.held_bytes == 0


def test_a_result_is_fetched_once_at_a_time() -> None:
    """A second message of the same opening is a duplicate; one of a later opening is the one to complete."""
    mailbox = AttachedMailbox(1)
    item = result(0, Reference("results/0.json", 5))
    mailbox.state.accept(message("first", item))
    copy, again = message("first", item), message("second", item)
    assert mailbox.state.accept(copy) == []
    assert mailbox.state.take_completable() == [copy]
    mailbox.state.lost()
    mailbox.state.attachment = "second"
    assert mailbox.state.accept(again) == []
    mailbox.state.fetched(result(0, "large"), 5)
    assert mailbox.read() == ["large"]
    assert mailbox.state.take_completable() == [again]


def test_a_result_that_is_being_fetched_is_not_overtaken() -> None:
    """The task ran again after its arguments had been removed: that failure comes second.

    It used to be shown in place of a success that an earlier holder had shown already.
    """
    record = a_record(submitted=1)
    mailbox = AttachedMailbox(record=record)
    whole = result(0, "large", incarnation="old")
    mailbox.state.accept(message("first", replace(whole, value=Reference("results/0.json", 5))))
    failure = replace(
        whole, status=Status.FAILED, value=None, error="its arguments are gone", kind="TaskRejected"
    )
    late = message("first", failure)
    assert mailbox.state.accept(late) == []
    assert mailbox.read() == []
    mailbox.state.fetched(whole, 5)
    assert mailbox.read() == ["large"]
    assert late in mailbox.state.take_completable()


def test_where_there_is_nothing_to_fetch_the_next_outcome_counts() -> None:
    """Rather than a failure to fetch the first one."""
    mailbox = AttachedMailbox(1)
    item = result(0, Reference("results/0.json", 5))
    mailbox.state.accept(message("first", item))
    mailbox.state.accept(message("first", result(0, "small")))
    mailbox.state.not_there(
        item, replace(item, status=Status.FAILED, value=None, error="gone", kind="TaskFailed")
    )
    assert mailbox.read() == ["small"]
    assert len(mailbox.state.take_completable()) == 2
    assert not mailbox.state.fetching


def test_duplicate_keeps_the_blob_of_an_undelivered_outcome() -> None:
    """The blob goes with the message that is held, for that one comes again should this session die.

    It used to go with the duplicate, which is completed at once: the value was lost to the next holder, and
    to this one while it was being fetched.
    """
    mailbox = AttachedMailbox(1, record=a_record())
    item = result(0, Reference("results/0.json", 5))
    received, copy, other = message("first", item), message("first", item), message("first", item)
    mailbox.state.accept(received)
    mailbox.state.accept(copy)
    mailbox.state.fetched(result(0, "large"), 5)
    assert mailbox.state.take_completable() == [copy]
    assert (copy.blobs, received.blobs) == ([], ["results/0.json"])
    mailbox.read()
    assert mailbox.state.take_completable() == [received]
    mailbox.state.accept(other)
    assert other.blobs == ["results/0.json"]


def test_result_fetched_during_a_loss_takes_its_redelivered_message() -> None:
    """It is not shown twice, and its new message is completed when it was read."""
    mailbox = AttachedMailbox(1, record=a_record())
    mailbox.state.accept(message("first", result(0, Reference("results/0.json", 5))))
    mailbox.state.lost()
    mailbox.state.fetched(result(0, "large"), 5)
    mailbox.state.attachment = "second"
    again = message("second", result(0, Reference("results/0.json", 5)))
    (fetch,) = mailbox.state.accept(again)
    assert isinstance(fetch, Fetch)
    mailbox.state.fetched(result(0, "large"), 5)
    assert not mailbox.state.take_completable()
    assert mailbox.read() == ["large"]
    assert mailbox.state.take_completable() == [again]


def test_fetch_of_a_lost_attachment_completes_no_redelivered_message() -> None:
    """A duplicate that was fetched late used to take the place of the message that is to be held.

    That one was then completed unread, and the outcome was lost with the process.
    """
    mailbox = AttachedMailbox(1, record=a_record())
    mailbox.state.accept(message("first", result(0, "small")))
    mailbox.state.accept(message("first", result(0, Reference("results/0.json", 5))))
    mailbox.state.lost()
    mailbox.state.attachment = "second"
    mailbox.state.fetched(result(0, "large"), 5)
    again = message("second", result(0, "small"))
    mailbox.state.accept(again)
    assert not mailbox.state.take_completable()
    assert mailbox.read() == ["small"]
    assert mailbox.state.take_completable() == [again]


def test_missing_blob_fails_its_result_while_the_mailbox_is_held() -> None:
    """After a loss it says nothing: whoever had the mailbox may have shown the result, and removed the blob.

    A client that stood still used to show a failure of what another one had shown as a success.
    """
    mailbox = AttachedMailbox(1, record=a_record())
    item = result(0, Reference("results/0.json", 5))
    failure = replace(item, value=None, status=Status.FAILED, error="gone")
    mailbox.state.accept(message("first", item))
    mailbox.state.lost()
    mailbox.state.attachment = "second"
    assert mailbox.state.not_there(item, failure) == []
    (fetch,) = mailbox.state.accept(message("second", item))
    assert isinstance(fetch, Fetch)
    (resolved,) = mailbox.state.not_there(item, failure)
    assert isinstance(resolved, Resolved)
    assert resolved.outcome is failure
    mailbox.read()
    assert len(mailbox.state.take_completable()) == 1


# ---- spilling


@pytest.mark.parametrize(
    "limits", [UnreadLimits(1, 99, 10**9), UnreadLimits(99, 1, 10**9), UnreadLimits(99, 99, 1)]
)
def test_unread_outcomes_spill_to_disk(limits: UnreadLimits) -> None:
    """Past so many messages, outcomes or bytes; without an account their messages are due then."""
    mailbox = AttachedMailbox(2, limits=limits)
    for sequence in range(2):
        mailbox.state.accept(message("first", result(sequence, sequence)))
    assert mailbox.spill() == 2
    assert len(mailbox.state.take_completable()) == 2
    assert mailbox.read() == [0, 1]
    assert mailbox.spill() == 0


def test_spilled_outcome_of_a_named_session_stays_in_the_mailbox() -> None:
    """The file dies with the process: the message is completed when the outcome was read."""
    mailbox = AttachedMailbox(1, limits=UnreadLimits(0, 99, 10**9), record=a_record())
    mailbox.state.accept(message("first", result(0, "a")))
    assert mailbox.spill() == 1
    assert mailbox.state.held == 1
    assert not mailbox.state.take_completable()
    assert mailbox.read() == ["a"]
    assert len(mailbox.state.take_completable()) == 1
    assert not mailbox.state.spilled


# ---- what was read


def test_read_results_are_freed() -> None:
    """With the last outcome of a message all that it brought goes."""
    mailbox = AttachedMailbox(3)
    mailbox.state.accept(message("first", result(0), result(1), result(2)))
    assert len(mailbox.state.fresh) == 3
    mailbox.read()
    assert not mailbox.state.fresh


@pytest.mark.parametrize(("size", "most"), [(10, 1024), (300_000, 5)])
def test_read_results_are_freed_behind_an_unread_one(size: int, most: int) -> None:
    """Not each at once: past so many of them, or so many bytes."""
    number = 1500 if most > 5 else 40
    mailbox = AttachedMailbox(number)
    mailbox.state.accept(message("first", result(0, "unread")))
    mailbox.tracker.claim(mailbox.state.fresh[0])
    for sequence in range(1, number):
        mailbox.state.accept(message("first", result(sequence, "v" * size)))
        assert mailbox.read() == ["v" * size]
        assert len(mailbox.state.fresh) <= most
    assert mailbox.state.fresh[0].sequence == 0


def test_bytes_of_completable_messages_are_counted() -> None:
    """The broker's client holds them until then."""
    mailbox = AttachedMailbox(2)
    for sequence in range(2):
        mailbox.state.accept(message("first", result(sequence, "v" * 1000)))
    assert mailbox.state.completable_bytes == 0
    mailbox.read()
    held = mailbox.state.completable_bytes
    assert held > 2000
    taken = mailbox.state.take_completable()
    assert mailbox.state.completable_bytes == 0
    mailbox.state.put_back(taken)
    assert mailbox.state.completable_bytes == held
    mailbox.state.lost()
    assert mailbox.state.completable_bytes == 0


# ---- all at once


class Mailbox(RuleBasedStateMachine):
    """A session by a name, whose mailbox is lost now and then: what was not completed comes again."""

    def __init__(self) -> None:
        super().__init__()
        self.record = a_record(submitted=3)
        self.mailbox = AttachedMailbox(6, limits=UnreadLimits(4, 3, 10**9), record=self.record)
        self.mailbox.tracker.expect(3)
        self.openings = count(1)
        self.queue: list[ResultItem] = []
        """In the mailbox, and not delivered to this opening."""
        self.out: dict[str, ResultItem] = {}
        """Delivered and not completed, by message id."""
        self.shown: list[str] = []
        self.sent: set[str] = set()

    @initialize()
    def begin(self) -> None:
        self.mailbox.state.attachment = f"opening {next(self.openings)}"

    @rule(incarnation=st.sampled_from(["me", "old"]), sequence=st.integers(0, 5), large=st.booleans())
    def an_agent_answers(self, incarnation: str, sequence: int, large: bool) -> None:
        if incarnation == "old" and sequence > 2:
            return
        item = result(sequence, f"{incarnation}:{sequence}", incarnation=incarnation)
        self.sent.add(item.uid)
        self.queue.append(replace(item, value=Reference(f"results/{item.uid}", 7)) if large else item)

    @precondition(lambda self: self.queue)
    @rule()
    def a_message_comes(self) -> None:
        item = self.queue.pop(0)
        attachment = self.mailbox.state.attachment
        assert attachment is not None
        received = message(attachment, item)
        self.out[received.delivery.message_id] = item
        self.mailbox.state.accept(received)
        self.mailbox.spill()

    @precondition(lambda self: self.mailbox.state.fetching)
    @rule()
    def storage_answers(self) -> None:
        uid = next(iter(self.mailbox.state.fetching))
        incarnation, sequence = wire.split_uid(uid)
        self.mailbox.state.fetched(result(sequence, f"{incarnation}:{sequence}", incarnation=incarnation), 7)
        self.mailbox.spill()

    @rule()
    def a_caller_reads(self) -> None:
        entry = self.mailbox.tracker.next_unclaimed()
        if entry is not None:
            self._show(entry)

    def _show(self, entry: Entry) -> None:
        assert entry.uid not in self.shown
        self.shown.append(entry.uid)

    @rule()
    def what_is_due_is_completed(self) -> None:
        completable = self.mailbox.state.take_completable()
        saved = Checkpoint.decode(self.record.to_save(6))
        for received in completable:
            item = self.out.pop(received.delivery.message_id)
            assert saved.is_consumed(*wire.split_uid(item.uid)) or item.uid in {
                other.uid for other in (*self.out.values(), *self.queue)
            }

    @rule()
    def the_mailbox_is_lost(self) -> None:
        self.mailbox.state.lost()
        self.mailbox.state.attachment = f"opening {next(self.openings)}"
        self.queue = [*self.out.values(), *self.queue]
        self.out = {}

    @invariant()
    def what_was_read_and_nothing_else_is_consumed(self) -> None:
        consumed = {uid for uid in self.sent if self.record.is_consumed(uid)}
        assert consumed == set(self.shown)

    @invariant()
    def every_message_that_is_held_is_out(self) -> None:
        state = self.mailbox.state
        assert state.held >= 0
        assert state.held + len(state.completable) == len(self.out)

    def teardown(self) -> None:
        while self.queue or self.mailbox.state.fetching:
            if self.queue:
                self.a_message_comes()
            if self.mailbox.state.fetching:
                self.storage_answers()
        while (entry := self.mailbox.tracker.next_unclaimed()) is not None:
            self._show(entry)
        self.what_is_due_is_completed()
        assert set(self.shown) == self.sent
        assert not self.out
        assert (self.mailbox.state.held, self.mailbox.state.held_bytes) == (0, 0)
        assert not self.mailbox.state.spilled


TestMailbox = Mailbox.TestCase
TestMailbox.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
