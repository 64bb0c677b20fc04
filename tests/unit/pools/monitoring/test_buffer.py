"""Rows that wait to be sent: each is taken once, waits, or is counted as dropped."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from batchflow.pools.monitoring.buffer import RowBatch, RowBuffer


class Rows(RuleBasedStateMachine):
    """A small buffer, and a service that takes, refuses, delays and finds too large."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = RowBuffer(most_bytes=400, batch_bytes=120)
        self.added = 0
        self.sent: list[int] = []
        self.sending: list[RowBatch] = []

    @rule(stream=st.sampled_from("ab"), size=st.integers(0, 60))
    def add(self, stream: str, size: int) -> None:
        self.buffer.add(stream, {"n": self.added, "x": "x" * size})
        self.added += 1

    @rule()
    def take(self) -> None:
        if (batch := self.buffer.take()) is not None:
            assert batch.rows
            self.sending.append(batch)

    @rule(end=st.sampled_from(["taken", "put_back", "too_large", "drop"]))
    def end(self, end: str) -> None:
        if not self.sending:
            return
        batch = self.sending.pop()
        if end == "taken":
            self.sent += [row["n"] for row, _ in batch.rows]
        getattr(self.buffer, end)(batch)

    @invariant()
    def every_row_is_somewhere(self) -> None:
        on_the_way = sum(len(batch.rows) for batch in self.sending)
        assert len(self.sent) == len(set(self.sent))
        assert self.added == len(self.sent) + on_the_way + len(self.buffer) + self.buffer.dropped
        assert 0 <= self.buffer.size <= 400


TestRows = Rows.TestCase
TestRows.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_too_large_batch_is_sent_in_smaller_ones() -> None:
    """Down to a lone row, which is dropped."""
    buffer = RowBuffer()
    for number in range(4):
        buffer.add("a", {"n": number})
    sizes = []
    while (batch := buffer.take()) is not None:
        sizes.append(len(batch.rows))
        buffer.too_large(batch)
    assert sizes == [4, 2, 1, 1, 1, 1]
    assert (buffer.dropped, buffer.size) == (4, 0)
