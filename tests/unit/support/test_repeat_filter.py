"""Warnings that come again and again."""

from __future__ import annotations

from batchflow.support.repeat_filter import FIRST_PAUSE, LONGEST_PAUSE, RepeatFilter


def told(message: str, seconds: int, filtered: RepeatFilter) -> list[int]:
    return [now for now in range(seconds) if filtered.passes(message.format(now), now)]


def test_a_warning_that_repeats_is_told_less_and_less_often() -> None:
    """A service that is away for an hour is told of about ten times, whatever number the text has."""
    times = told("{} tasks wait: connection refused", 3600, RepeatFilter())
    assert times[:5] == [0, 10, 30, 70, 150]
    assert len(times) < 14


def test_other_warnings_are_told_at_once() -> None:
    """And so is one that has been quiet for long."""
    filtered = RepeatFilter()
    assert filtered.passes("a", 0.0)
    assert filtered.passes("b", 0.0)
    assert not filtered.passes("a", FIRST_PAUSE - 0.1)
    later = 3 * LONGEST_PAUSE
    assert filtered.passes("a", later)
    assert not filtered.passes("a", later + 1)
    assert filtered.passes("a", later + FIRST_PAUSE)
