"""What travels with a mailbox."""

from __future__ import annotations

import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchflow.errors import ProtocolError
from batchflow.sessions.records.checkpoint import REMEMBERED, Checkpoint, IncarnationProgress
from batchflow.support.ranges import Ranges


@given(st.lists(st.integers(0, 60)))
def test_ranges_are_a_set(numbers: list[int]) -> None:
    """Numbers come out as they went in, each once, in as few intervals as can be."""
    ranges, model = Ranges(), set[int]()
    for number in numbers:
        assert ranges.add(number) is (number not in model)
        model.add(number)
    assert {number for first, last in ranges for number in range(first, last + 1)} == model
    assert all(number in ranges for number in model)
    assert not any(number in ranges for number in set(range(62)) - model)
    intervals = list(ranges)
    assert all(left[1] + 1 < right[0] for left, right in pairwise(intervals))
    assert all(ranges.count_below(limit) == len({n for n in model if n < limit}) for limit in range(62))


def test_a_later_holder_knows_what_is_owed() -> None:
    """What was submitted and not consumed is owed to the next holder, and to the one after it."""
    checkpoint = Checkpoint()
    assert checkpoint.open("first") == 0
    checkpoint.incarnations["first"].submitted = 5
    for sequence in (0, 1, 3):
        assert checkpoint.consume("first", sequence)
    checkpoint = Checkpoint.decode(checkpoint.encode())
    assert checkpoint.open("second") == 2
    assert checkpoint.is_owed("first", 2)
    assert not checkpoint.is_owed("first", 3)
    assert checkpoint.consume("first", 2)
    assert not checkpoint.consume("first", 2)
    checkpoint = Checkpoint.decode(checkpoint.encode())
    assert checkpoint.open("third") == 1
    assert checkpoint.epoch == 3


def test_outcomes_consumed_before_the_checkpoint_was_read_stay_consumed() -> None:
    """A task can have its outcome, cancelled before it was sent, before the mailbox's state has been read.

    It used to be forgotten then, and was owed to every later holder.
    """
    before = Checkpoint()
    before.consume("first", 1)
    checkpoint = Checkpoint.decode(None)
    checkpoint.open("first", before.incarnations["first"])
    checkpoint.incarnations["first"].submitted = 3
    assert checkpoint.open("second") == 2


def test_settled_incarnation_is_remembered_for_later_holders() -> None:
    """A message that was consumed and not completed is redelivered, perhaps to the holder after the next.

    It used to be forgotten with the next holder, who then was shown the last outcomes of the one before.
    """
    checkpoint = Checkpoint()
    checkpoint.open("first")
    checkpoint.incarnations["first"].submitted = 1
    checkpoint.consume("first", 0)
    for number in range(REMEMBERED):
        assert checkpoint.open(f"holder {number}") == 0
        assert checkpoint.is_consumed("first", 0)
    checkpoint.open("last")
    assert not checkpoint.is_consumed("first", 0)
    assert len(checkpoint.incarnations) == REMEMBERED + 1


def test_holder_replaced_before_it_read_the_checkpoint_notices() -> None:
    """A holder that stood still after its first tasks finds that their outcomes went to another holder.

    It used to overwrite the record that said so, and waited for them without end.
    """
    progress = IncarnationProgress()
    progress.consumed.add(3)
    checkpoint = Checkpoint()
    assert not checkpoint.was_replaced("paused", progress)
    checkpoint.consume("paused", 3)
    assert not checkpoint.was_replaced("paused", progress)
    checkpoint.open("successor")
    checkpoint.consume("paused", 1)
    assert checkpoint.was_replaced("paused", progress)


def test_late_outcome_is_consumed_without_being_owed() -> None:
    """A task beyond what the checkpoint knows as submitted is remembered once it was shown."""
    checkpoint = Checkpoint()
    checkpoint.open("first")
    assert checkpoint.consume("first", 7)
    assert checkpoint.is_consumed("first", 7)
    assert checkpoint.incarnations["first"].owed == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        zlib.compress(b"{"),
        zlib.compress(b"[]"),
        zlib.compress(b'{"v":2}'),
        zlib.compress(b'{"v":1}'),
    ],
)
def test_undecodable_checkpoint_raises_a_protocol_error(data: bytes) -> None:
    """A state that is no checkpoint is a ProtocolError, never another exception."""
    with pytest.raises(ProtocolError):
        Checkpoint.decode(data)


def test_fragmented_checkpoint_fits_into_a_session_state() -> None:
    """Every other of 100,000 tasks consumed stays below the 256 KB of the Standard tier."""
    checkpoint = Checkpoint()
    checkpoint.open("first")
    checkpoint.incarnations["first"].consumed = Ranges.of((number, number) for number in range(0, 100_000, 2))
    assert len(checkpoint.encode()) < 256 * 1024


def test_a_task_that_a_later_session_sent_is_owed_to_the_first() -> None:
    """It waited for others until then, and its outcome comes under its first uid."""
    checkpoint = Checkpoint()
    checkpoint.open("first")
    checkpoint.open("second")
    assert checkpoint.note_sent("first", 3)
    assert not checkpoint.note_sent("first", 3)
    found = Checkpoint.decode(checkpoint.encode())
    assert found.is_owed("first", 3)
    assert found.open("third") == 1
