"""hand_back and its neighbours, with a crash at every point: each task still gets its one outcome.

The agent dies without a word (or hangs without end, which the broker cannot tell apart) right before or right
after an operation; then its locks run out, and another agent takes over.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from batchflow.model import Status
from batchflow.protocol import wire
from node_agent.execution.outcomes import Execution, Outcome
from node_agent.links.task_queue import copy_message
from tests.support.agent_world import World, succeed, task


class Crash:
    """A fault that never comes back; `came` tells that it was reached."""

    def __init__(self) -> None:
        self.came = asyncio.Event()

    async def __call__(self) -> None:
        self.came.set()
        await asyncio.Event().wait()


def flaky(execution: Execution) -> Outcome:
    """Fails once, then succeeds."""
    if execution.attempt == 1:
        return Outcome(Status.FAILED, error="not yet", kind="TaskFailed")
    return succeed(execution)


async def crash_at(world: World, when: str, operation: str) -> None:
    """Let an agent live until it comes there, then die; its locks run out."""
    crash = Crash()
    getattr(world.faults, when)[operation] = crash
    async with world.doomed():
        async with asyncio.timeout(20.0):
            await crash.came.wait()
    getattr(world.faults, when).clear()
    world.lapse()


def outcomes(results: list[wire.ResultItem]) -> Counter[str]:
    return Counter(result.uid for result in results)


@pytest.mark.parametrize(
    ("when", "operation"),
    [(when, operation) for operation in ("send results", "complete") for when in ("before", "after")],
)
async def test_a_crash_while_a_result_is_sent_loses_nothing(when: str, operation: str) -> None:
    """Before it is accepted the task runs again; after that at most a duplicate comes, under the same uid."""
    world = await World.make()
    await world.submit(task(0))
    await crash_at(world, when, operation)
    async with world.agent():
        await world.submit(task(1))
        first = await world.results(2)
        await world.empty()
    uids = {result.uid for result in first}
    assert "abc123:0" in uids


async def test_an_agent_killed_before_it_completes_a_message_leaves_nothing_to_run_again() -> None:
    """The next agent of its node completes the message; that of another node runs its task again."""
    for same_node, runs in ((True, 1), (False, 2)):
        ran: list[str] = []

        def note(execution: Execution, ran: list[str] = ran) -> Outcome:
            ran.append(execution.uid)
            return succeed(execution)

        world = await World.make(note=note)
        world.same_node = same_node
        await world.submit(task(0, "note"))
        await crash_at(world, "before", "complete")
        async with world.agent():
            await world.empty()
        assert len(ran) == runs


@pytest.mark.parametrize(
    ("when", "operation"),
    [
        ("before", "schedule tasks"),
        ("after", "schedule tasks"),
        ("before", "complete"),
        ("after", "complete"),
    ],
)
async def test_a_crash_while_a_retry_is_sent_loses_nothing(when: str, operation: str) -> None:
    """The copy is sent, or the first attempt runs again and sends the same copy, which the broker drops."""
    world = await World.make(flaky=flaky)
    retry = {"max_attempts": 3, "backoff": 0.2, "jitter": 0.0}
    await world.submit(task(0, "flaky", retry=retry))
    await crash_at(world, when, operation)
    async with world.agent():
        (result,) = await world.results(1)
        await world.empty()
    assert (result.status, result.attempt) == (Status.SUCCEEDED, 2)
    assert [past.number for past in result.history] == [1]


@pytest.mark.parametrize(
    ("when", "operation"),
    [(when, operation) for operation in ("send tasks", "complete") for when in ("before", "after")],
)
async def test_a_crash_while_a_pack_is_split_loses_nothing(when: str, operation: str) -> None:
    """A second delivery is handed back task by task; a third one finds copies that are there already."""
    world = await World.make()
    crash = Crash()
    world.faults.before["send results"] = crash
    await world.submit(*(task(number) for number in range(3)))
    async with world.doomed():
        await crash.came.wait()
    world.faults.before.clear()
    world.lapse()
    await crash_at(world, when, operation)
    async with world.agent():
        results = await world.results(3)
        await world.empty()
    assert outcomes(results) == {f"abc123:{number}": 1 for number in range(3)}


@pytest.mark.parametrize(
    ("when", "operation"),
    [(when, operation) for operation in ("send tasks", "complete") for when in ("before", "after")],
)
async def test_a_crash_while_draining_loses_nothing(when: str, operation: str) -> None:
    """What was handed back, and what was not yet, is run by the next agent."""
    gate = asyncio.Event()

    async def held(execution: Execution) -> Outcome:
        await gate.wait()
        return succeed(execution)

    world = await World.make(held=held)
    crash = Crash()
    getattr(world.faults, when)[operation] = crash
    await world.submit(task(0, "held"), task(1))
    async with world.doomed() as agent:
        await world.until(lambda: bool(world.slots[0].begun))
        agent.drain(0.0)
        async with asyncio.timeout(20.0):
            await crash.came.wait()
    getattr(world.faults, when).clear()
    world.lapse()
    gate.set()
    async with world.agent():
        results = await world.results(2)
        await world.empty()
    assert set(outcomes(results)) == {"abc123:0", "abc123:1"}


async def test_a_straggler_does_not_hold_its_companions() -> None:
    """They are handed back, and another agent runs them meanwhile; the message is completed at the end."""
    gate = asyncio.Event()

    async def held(execution: Execution) -> Outcome:
        await gate.wait()
        return succeed(execution)

    world = await World.make(held=held)
    async with world.agent():
        await world.submit(task(0, "held"), task(1), task(2))
        await world.until(lambda: bool(world.slots[0].begun))
        stuck = world.slots
        async with world.agent():
            others = await world.results(2)
            gate.set()
            (last,) = await world.results(1)
            await world.empty()
    assert outcomes(others) == {"abc123:1": 1, "abc123:2": 1}
    assert last.uid == "abc123:0"
    assert stuck[0].begun == ["abc123:0"]


async def test_a_delayed_retry_holds_no_slot() -> None:
    """While it waits in the broker, another task runs in the only slot."""
    world = await World.make(flaky=flaky)
    async with world.agent():
        retry = {"max_attempts": 2, "backoff": 1.0, "jitter": 0.0}
        await world.submit(task(0, "flaky", retry=retry))
        await world.until(lambda: "schedule tasks" in world.faults.calls)
        await world.submit(task(1))
        results = await world.results(2)
        await world.empty()
    assert [result.uid for result in results] == ["abc123:1", "abc123:0"]


@pytest.mark.parametrize(("expires", "lives"), [(None, None), (5.0, 5.0), (0.0, 0.001), (5e6, None)])
def test_a_copy_lives_as_long_as_its_task_may_wait(expires: float | None, lives: float | None) -> None:
    """Service Bus counts milliseconds in 32 bits: a copy that may wait for longer does not expire there."""
    assert copy_message(task(0, expires=expires)).time_to_live == lives


def test_the_id_of_a_copy_is_that_of_its_hop() -> None:
    """Made again after a crash it is the same; another hop or attempt is another message."""
    copies: list[Any] = [
        wire.handed_back(task(0)),
        wire.handed_back(task(0)),
        wire.handed_back(wire.handed_back(task(0))),
        wire.handed_back(task(0), attempt=2),
        wire.handed_back(task(1)),
    ]
    ids = [copy_message(copy).message_id for copy in copies]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4
    assert all(len(each) <= 128 for each in ids)
