"""The lane that a session sends to, and what a priority does in a pool without lanes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Final

import anyio
import pytest

from batchflow.client import Client
from batchflow.errors import ConfigurationError
from batchflow.model import PoolSpec
from batchflow.pool import Pool
from batchflow.ports.broker import QueueRef
from batchflow.ports.storage import BlobInfo
from batchflow.protocol import lanes, wire
from batchflow.protocol.documents import Presence
from batchflow.protocol.layout import session_blob
from batchflow.protocol.wire import TaskItem
from tests.support.agent import Agent
from tests.support.services import Doubles
from tests.support.waiting import eventually, within


async def test_sessions_of_a_fair_pool_have_lanes_of_their_own(client: Client) -> None:
    """Each of its priority, also where other clients hold lanes; a session that closes leaves its lane."""
    pool = await client.create_pool(PoolSpec("fair", nodes=1, sharing="fair"))
    manifest, load = pool.runtime.manifest, pool.runtime.load
    assert manifest.lanes == lanes.layout()
    assert len(manifest.task_queues) == len(manifest.lanes)
    normal = [lane for lane, each in enumerate(manifest.lanes) if each == "normal"]
    for lane in normal[2:]:
        presence = Presence("elsewhere", "n", 0.0, 60.0, lane=lane)
        await pool.runtime.ctl.put(session_blob("default", f"other{lane}"), presence.encode())
    async with pool.session("a"), pool.session("b"), pool.session("c", priority="interactive"):
        assert {load.lanes["default/a"], load.lanes["default/b"]} == set(normal[:2])
        assert manifest.lanes[load.lanes["default/c"]] == "interactive"
        blob = session_blob("default", "a")

        async def told() -> bool:
            found = [info.name async for info in pool.runtime.ctl.list(blob)]
            return bool(found) and Presence.decode((await pool.runtime.ctl.get(blob)).data).lane is not None

        while not await within(told()):
            await eventually(lambda: True)
    assert load.lanes == {}


async def test_sessions_that_open_together_have_lanes_of_their_own(client: Client) -> None:
    pool = await client.create_pool(PoolSpec("fair", nodes=1, sharing="fair"))
    runtime, priorities = pool.runtime, pool.runtime.manifest.lanes
    presence = Presence("elsewhere", "n", 0.0, 60.0, lane=priorities.index("bulk"))
    await runtime.ctl.put(session_blob("default", "other"), presence.encode())
    first = priorities.index("normal")
    names = [f"s{number}" for number in range(100)]
    alike = [each for each in names if lanes.lane_for(priorities, "normal", f"default/{each}", {}) == first]
    sessions = [pool.session(name) for name in alike[:3]]
    async with AsyncExitStack() as stack:
        async with anyio.create_task_group() as group:
            for session in sessions:
                group.start_soon(stack.enter_async_context, session)
        assert len(set(runtime.load.lanes.values())) == len(runtime.load.lanes) == 3


async def test_a_crowd_of_sessions_that_are_gone_hides_no_living_one(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The youngest documents are read, also where the names of old ones come first."""
    pool = await client.create_pool(PoolSpec("fair", nodes=1, sharing="fair"))
    runtime = pool.runtime
    *taken, free = [lane for lane, each in enumerate(runtime.manifest.lanes) if each == "normal"]
    for number in range(100):
        gone = Presence("elsewhere", "n", 0.0, 60.0, lane=free)
        await runtime.ctl.put(session_blob("default", f"a{number}"), gone.encode())
    ages = {session_blob("default", f"a{number}"): 3600.0 for number in range(100)}
    listed = runtime.ctl.list

    async def aged(prefix: str = "") -> AsyncIterator[BlobInfo]:
        async for info in listed(prefix):
            yield replace(info, age=ages.get(info.name, info.age))

    monkeypatch.setattr(runtime.ctl, "list", aged)
    for lane in taken:
        presence = Presence("elsewhere", "n", 0.0, 60.0, lane=lane)
        await runtime.ctl.put(session_blob("default", f"z{lane}"), presence.encode())
    async with pool.session("s"):
        assert runtime.load.lanes == {"default/s": free}


async def test_a_priority_in_a_pool_without_lanes_is_told_of(pool: Pool, caplog: Any) -> None:
    assert pool.runtime.manifest.lanes == ()
    async with pool.session("a", priority="bulk"):
        assert "changes nothing in this pool" in caplog.text


WANTED: Final[list[lanes.Priority | None]] = [None, "interactive", "bulk", "normal", "interactive"]


async def test_a_task_with_a_priority_of_its_own_goes_to_a_lane_of_that(
    client: Client, doubles: Doubles
) -> None:
    """Others of the session stay in its lane, and so does one with the session's own priority."""
    pool = await client.create_pool(PoolSpec("fair", nodes=1, sharing="fair"))
    queues = pool.runtime.manifest.task_queues
    sent: dict[str, list[str]] = {}
    async with pool.session("a") as session:
        tasks = [
            await session.submit("x.py", task_id=f"{place} {priority}", priority=priority)
            for place, priority in enumerate(WANTED)
        ]
        await session.submit("x.py", task_id="5 bulk", after=[tasks[0]], priority="bulk")
        await within(session.flush())
        agent = Agent(doubles, pool)
        found = await received(doubles, queues, pool.runtime.manifest.lanes, 5)
        sent = {lane: [item.task_id for item in items] for lane, items in found.items()}
        assert sent == {
            "normal": ["0 None", "3 normal"],
            "interactive": ["1 interactive", "4 interactive"],
            "bulk": ["2 bulk"],
        }
        await agent.answer(found["normal"][0])
        found = await received(doubles, queues, pool.runtime.manifest.lanes, 1)
        assert [item.task_id for item in found["bulk"]] == ["5 bulk"]
        await session.cancel_all()


async def received(
    doubles: Doubles, queues: Sequence[QueueRef], priorities: Sequence[str], number: int
) -> dict[str, list[TaskItem]]:
    """Return so many tasks that the queues have, by the priority of their lane."""
    found: dict[str, list[TaskItem]] = {}

    async def all_of_them() -> bool:
        for queue, priority in zip(queues, priorities, strict=True):
            async with await doubles.broker.receiver(queue) as receiver:
                while (delivery := await receiver.receive(0.0)) is not None:
                    items = [each for each in wire.decode(delivery.body) if isinstance(each, TaskItem)]
                    found.setdefault(priority, []).extend(items)
                    await receiver.complete(delivery)
        return sum(map(len, found.values())) >= number

    await eventually(all_of_them)
    return found


async def test_a_tasks_priority_in_a_pool_without_lanes_is_told_of_once(
    pool: Pool, agent: Agent, caplog: Any
) -> None:
    async with pool.session("a") as session:
        for _ in range(2):
            await session.submit("x.py", priority="bulk")
        assert len(await agent.take(2)) == 2
    assert caplog.text.count("changes nothing in this pool") == 1


@pytest.mark.parametrize("priority", ["urgent", 5, ""])
async def test_an_unknown_priority_of_a_task_is_refused(pool: Pool, priority: Any) -> None:
    async with pool.session("a") as session:
        with pytest.raises(ConfigurationError, match="priority is"):
            await session.submit("x.py", priority=priority)
        with pytest.raises(ConfigurationError, match="priority is"):
            session.map("x.py", [1], priority=priority)


@pytest.mark.parametrize("priority", ["urgent", 5, ""])
def test_an_unknown_priority_is_refused(pool: Pool, priority: Any) -> None:
    with pytest.raises(ConfigurationError, match="priority is"):
        pool.session("a", priority=priority)


async def test_a_pool_is_told_how_to_share(client: Client) -> None:
    with pytest.raises(ConfigurationError, match="sharing"):
        await client.create_pool(PoolSpec("fair", nodes=1, sharing="equal"))  # type: ignore[arg-type]
