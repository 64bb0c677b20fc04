"""The graph of waiting tasks, against a plain model of it."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchflow.model import Status
from batchflow.protocol.wire import ResultItem
from batchflow.sessions.records.submission import Submission
from batchflow.sessions.records.tracker import Entry
from batchflow.sessions.workflows.graph import (
    DependencyGraph,
    GraphCommand,
    Ready,
    RunsWith,
    Unreachable,
    Waiting,
)
from tests.unit.sessions.records.test_tracker import make_entry

RUNS_WITH = RunsWith("bundle")


def entry_of(number: int) -> Entry:
    """A task that waits, and has nothing that could be sent."""
    return make_entry(number, uid=f"s:{number}", item=None)


def end(entry: Entry, status: Status) -> None:
    entry.status = status
    entry.outcome = ResultItem(None, None, "j", "0", "", "c", "x.py", entry.uid, status)


def waiting_of(entry: Entry, inputs: list[Entry], *, passes: bool = False, size: int = 1) -> Waiting:
    submission = Submission(command="x.py", arguments=[], on_failure="pass" if passes else None)
    return Waiting(entry, submission, tuple(inputs), RUNS_WITH, size=size)


class Follower:
    """Performs the commands of a graph: a task that is unreachable ends, and so on."""

    def __init__(self) -> None:
        self.graph = DependencyGraph()
        self.ready: list[Entry] = []
        self.failed: list[Entry] = []

    def follow(self, commands: list[GraphCommand]) -> None:
        line = list(commands)
        while line:
            match line.pop(0):
                case Ready(waiting):
                    self.ready.append(waiting.entry)
                case Unreachable(waiting, because):
                    cancelled = because.status is Status.CANCELLED
                    end(waiting.entry, Status.CANCELLED if cancelled else Status.FAILED)
                    self.failed.append(waiting.entry)
                    line += self.graph.ended(waiting.entry)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 14))
def test_each_task_is_ready_or_unreachable_once_in_the_order_of_its_inputs(seed: int, count: int) -> None:
    """Whatever the graph, the order of submits and ends, and who fails or is cancelled."""
    chance = random.Random(seed)
    follower = Follower()
    entries: list[Entry] = []
    inputs: dict[Entry, list[Entry]] = {}
    passes: set[Entry] = set()
    sent: set[Entry] = set()

    def submit() -> None:
        entry = entry_of(len(entries))
        chosen = chance.sample(entries, min(len(entries), chance.choice((0, 1, 1, 2, 3))))
        entries.append(entry)
        inputs[entry] = chosen
        if chance.random() < 0.2:
            passes.add(entry)
        if chosen:
            follower.follow(follower.graph.hold(waiting_of(entry, chosen, passes=entry in passes)))
        else:
            sent.add(entry)

    def finish() -> None:
        for entry in follower.ready:
            if not entry.done and entry not in sent:
                assert all(each.done for each in inputs[entry])
                good = all(each.status is Status.SUCCEEDED for each in inputs[entry])
                assert good or entry in passes
                sent.add(entry)
        running = [entry for entry in entries if entry in sent and not entry.done]
        if chance.random() < 0.1:
            running = [entry for entry in entries if not entry.done]  # one that waits is cancelled
        if running:
            entry = chance.choice(running)
            status = Status.SUCCEEDED if entry in sent and chance.random() < 0.8 else Status.CANCELLED
            end(entry, Status.FAILED if status is not Status.SUCCEEDED and chance.random() < 0.5 else status)
            follower.follow(follower.graph.ended(entry))

    while len(entries) < count or not all(entry.done for entry in entries):
        if len(entries) < count and chance.random() < 0.6:
            submit()
        else:
            finish()
    assert len(follower.ready) == len(set(follower.ready))
    assert not set(follower.failed) & set(follower.ready)
    assert len(follower.graph) == 0
    assert follower.graph.held_bytes == 0


def chain(*links: tuple[int, list[int]]) -> tuple[Follower, list[Entry]]:
    follower, entries = Follower(), [entry_of(number) for number in range(6)]
    for number, inputs in links:
        follower.follow(follower.graph.hold(waiting_of(entries[number], [entries[i] for i in inputs])))
    return follower, entries


@pytest.mark.parametrize(
    ("links", "cancelled", "expected"),
    [
        ([(2, [0, 1])], 2, [0, 1]),
        ([(2, [0, 1]), (3, [1])], 2, [0]),
        ([(2, [0]), (3, [2]), (4, [1, 3])], 4, [0, 1, 2, 3]),
        ([(2, [0]), (3, [0])], 2, []),
        ([], 0, []),
    ],
)
def test_the_other_way_takes_inputs_that_no_other_task_needs(
    links: list[tuple[int, list[int]]], cancelled: int, expected: list[int]
) -> None:
    """Upward, as far as only what is dropped waits for them."""
    follower, entries = chain(*links)
    found = follower.graph.needed_by_none_but([entries[cancelled]])
    assert sorted(entry.sequence for entry in found) == expected


def test_a_long_chain_of_failures_needs_no_stack() -> None:
    """Each end is a command, not a call within a call."""
    follower = Follower()
    entries: list[Any] = [entry_of(number) for number in range(20_000)]
    for before, entry in itertools.pairwise(entries):
        follower.follow(follower.graph.hold(waiting_of(entry, [before])))
    end(entries[0], Status.FAILED)
    follower.follow(follower.graph.ended(entries[0]))
    assert len(follower.failed) == len(entries) - 1
