"""Sessions of one client learn together, and know of each other's work."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from batchflow.pools.shared_load import PoolLoad, SubmitTurns
from batchflow.protocol.packing import MOST_TASKS, PackingPolicy
from batchflow.sessions.records.tracker import Entry, Tracker

NEAR = 0.002
"""Seconds of a round trip."""


def _sessions(count: int, load: PoolLoad, queued: int = 0) -> list[PackingPolicy]:
    """Return the policies of so many sessions on two slots; the first has so many tasks under way."""
    policies = [PackingPolicy(2) for _ in range(count)]
    for number, policy in enumerate(policies):
        load.use_bundle(policy, "bundle")
        load.join(policy, partial([queued, 0].__getitem__, min(number, 1)))
    return policies


def _packed(policy: PackingPolicy, waiting: int) -> int:
    """Return how many of so many tasks the next message takes."""
    tracker = Tracker()
    for number in range(waiting):
        tracker.add(
            Entry(number, number, f"a:{number}", str(number), "x.py", "client", "job", 0.0, item=b"{}")
        )
    return len(tracker.take(policy.pack(waiting, tracker.queued))[0])


def test_a_session_packs_what_another_has_seen() -> None:
    """Without that, each session's first tasks ride alone."""
    one, other = _sessions(2, PoolLoad())
    assert _packed(other, 100) == 1
    one.seen("x.py", 0.0001)
    assert _packed(other, 100) > 1


def test_a_session_packs_fully_while_another_keeps_the_slots_busy() -> None:
    for queued, least, most in ((0, 1, MOST_TASKS // 2), (10_000, MOST_TASKS, MOST_TASKS)):
        load = PoolLoad()
        one, other = _sessions(2, load, queued)
        one.seen("x.py", 0.0001)
        one.sent(NEAR)
        for policy in (one, other):
            load.inform(policy)
        assert least <= _packed(other, MOST_TASKS) <= most


def test_a_session_gathers_while_another_keeps_the_slots_busy() -> None:
    """It leaves at once while the slots have little to do, and as soon as they have."""
    load = PoolLoad()
    one, other = _sessions(2, load, queued=100_000)
    one.durations.overall = 0.001
    load.inform(other)
    assert other.pause(now=1.0) > 0
    load.leave(one)
    load.inform(other)
    assert other.pause(now=1.0) == 0


def test_a_session_alone_knows_of_nothing_elsewhere() -> None:
    load = PoolLoad()
    (one,) = _sessions(1, load, queued=1000)
    one.seen("x.py", 0.001)
    load.inform(one)
    assert one.elsewhere == 0.0
    assert one.round_trip is None


def test_a_new_bundle_begins_with_what_the_session_knew() -> None:
    """And does not change what others know of the old one."""
    load = PoolLoad()
    one, other = _sessions(2, load)
    one.seen("x.py", 0.001)
    load.use_bundle(one, "changed")
    one.seen("x.py", 0.1)
    assert other.durations.means["x.py"] == 0.001
    assert one.durations.means["x.py"] > 0.001


def test_durations_of_the_latest_bundles_are_kept() -> None:
    load, policy = PoolLoad(), PackingPolicy()
    load.use_bundle(policy, "kept")
    kept = policy.durations
    for number in range(100):
        load.use_bundle(policy, str(number))
        load.use_bundle(policy, "kept")
    assert policy.durations is kept
    load.use_bundle(policy, "0")
    assert policy.durations is not kept


async def _waiting(turns: SubmitTurns, *names: str) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(turns.take(name)) for name in names]
    await asyncio.sleep(0)
    return tasks


async def test_a_few_sessions_submit_at_once_and_the_others_follow_in_their_order() -> None:
    turns = SubmitTurns(2)
    first, second, third, fourth = await _waiting(turns, "a", "b", "c", "d")
    assert [task.done() for task in (first, second, third, fourth)] == [True, True, False, False]
    turns.leave("b")
    turns.leave("b")
    await third
    assert not fourth.done()
    again = asyncio.create_task(turns.take("a"))
    await fourth
    assert not again.done()
    turns.leave("c")
    await again


async def test_a_session_that_gives_up_its_turn_holds_up_no_other() -> None:
    turns = SubmitTurns(1)
    _, second, third = await _waiting(turns, "a", "b", "c")
    second.cancel()
    turns.leave("a")
    await third


async def test_a_turn_that_does_not_end_holds_up_others_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchflow.pools.shared_load._LONGEST_TURN", 0.001)
    turns = SubmitTurns(1)
    _, second = await _waiting(turns, "a", "b")
    await second
    turns.leave("a")
