"""The checker finds what it is there to find, and reads what a run has written."""

from __future__ import annotations

import io

import pytest

from tests.model import history
from tests.model.checker import Checker
from tests.model.history import (
    Accepted,
    Cancelled,
    Closed,
    Ended,
    Fault,
    Gone,
    Opened,
    Queue,
    Record,
    Shown,
    Started,
    Submitted,
)


def judge(*records: Record) -> Checker:
    checker = Checker(patience=10.0)
    for record in records:
        checker.add(record)
    return checker


def opened(holder: str = "h1", *, journalled: bool = True) -> Opened:
    return Opened(0.0, "job/client", holder, journalled)


def submitted(
    task: str = "t", holder: str = "h1", at: float = 0.0, outcomes: tuple[str, ...] | None = None
) -> Submitted:
    return Submitted(at, "job/client", holder, task, outcomes)


def shown(
    task: str = "t",
    holder: str = "h1",
    at: float = 1.0,
    mailbox: str = "job/client",
    repeated: bool = False,
) -> Shown:
    return Shown(at, mailbox, holder, task, "succeeded", task, repeated)


BROKEN = [
    ("lost", (submitted(), Ended(5.0))),
    ("lost", (submitted(), Accepted(0.5, "t"), Gone(1.0, "h1"), Ended(5.0))),
    ("twice", (submitted(), shown(), shown(), Ended(5.0))),
    ("twice", (submitted(), shown(), shown(holder="h2"), Ended(5.0))),
    ("unknown", (shown(), Ended(5.0))),
    ("unknown", (submitted(), Shown(1.0, "job/client", "h1", "t", "succeeded", "other"), Ended(5.0))),
    ("misrouted", (submitted(), shown(mailbox="job/other"), Ended(5.0))),
    ("twice", (submitted(), shown(), Closed(1.5, "h1"), Gone(1.5, "h1"), shown(holder="h2"), Ended(5.0))),
    (
        "twice",
        (opened(), submitted(), shown(), Gone(1.5, "h1"), opened("h2"), shown(holder="h2"), Ended(5.0)),
    ),
    ("unmarked", (submitted(), shown(), Gone(1.5, "h1"), shown(holder="h2", at=2.0), Ended(5.0))),
    ("outcome", (submitted(outcomes=("failed",)), shown(), Ended(5.0))),
    ("started", (submitted(), Accepted(0, "t"), Cancelled(1, "t"), Started(2.1, "t"), shown(), Ended(5))),
    ("unknown", (Started(2.1, "t"), Ended(5.0))),
    ("stuck", (submitted(), shown(at=11.0), Ended(12.0))),
    ("stuck", (Ended(5.0, halted=True),)),
    ("left", (submitted(), shown(), Queue(5.0, "tasks", 0, 0, 1), Ended(5.0))),
]


@pytest.mark.parametrize(("rule", "records"), BROKEN)
def test_a_broken_rule_is_told(rule: str, records: tuple[Record, ...]) -> None:
    """Each way of breaking the promise has its name."""
    checker = judge(*records)
    assert set(checker.broken) == {rule}
    assert not checker.holds
    assert checker.told


KEPT = [
    (submitted(), Accepted(0.5, "t"), shown(), Queue(5.0, "tasks", 0, 0, 0), Ended(5.0)),
    (submitted(), Gone(1.0, "h1"), Ended(5.0)),
    (submitted(), shown(), Gone(1.5, "h1"), shown(holder="h2", at=2.0, repeated=True), Ended(5.0)),
    (
        opened(journalled=False),
        submitted(),
        shown(),
        opened("h2"),
        shown(holder="h2", repeated=True),
        Ended(5.0),
    ),
    (opened(), submitted(), opened("h2"), shown(holder="h2"), shown(), Ended(5.0)),
    (submitted(), Accepted(0, "t"), Cancelled(1.0, "t"), Started(1.9, "t"), shown(at=3.0), Ended(5.0)),
    (submitted(), Cancelled(1.0, "t"), Accepted(7, "t"), Started(7.9, "t"), shown(at=8.0), Ended(9.0)),
    (submitted(), Accepted(0, "t"), Cancelled(1, "t"), Closed(1, "h1"), Started(9, "t"), shown(), Ended(9)),
    (submitted(), Fault(9.0, "killed"), shown(at=18.0), Ended(100.0)),
    (submitted(), shown(), submitted("u", at=50.0), shown("u", at=55.0), Ended(60.0)),
]


@pytest.mark.parametrize("records", KEPT)
def test_a_kept_promise_is_told(records: tuple[Record, ...]) -> None:
    """What a death excuses, and a long time in which nothing is owed, break no rule."""
    checker = judge(*records)
    assert checker.holds, checker.told


def test_a_history_that_does_not_end_is_no_proof() -> None:
    """A run that was cut off is not taken for one that went well."""
    assert not judge(submitted(), shown()).holds


def test_a_history_is_read_as_it_was_written() -> None:
    """Real runs leave a file."""
    file = io.StringIO()
    history.write(KEPT[0], file)
    file.seek(0)
    assert tuple(history.read(file)) == KEPT[0]
