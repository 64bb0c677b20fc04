"""The lane that a session sends to, and what a priority does in a pool without lanes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import anyio
import pytest

from batchflow.client import Client
from batchflow.errors import ConfigurationError
from batchflow.model import PoolSpec
from batchflow.pool import Pool
from batchflow.ports.storage import BlobInfo
from batchflow.protocol import lanes
from batchflow.protocol.documents import Presence
from batchflow.protocol.layout import session_blob
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


@pytest.mark.parametrize("priority", ["urgent", 5, ""])
def test_an_unknown_priority_is_refused(pool: Pool, priority: Any) -> None:
    with pytest.raises(ConfigurationError, match="priority is"):
        pool.session("a", priority=priority)


async def test_a_pool_is_told_how_to_share(client: Client) -> None:
    with pytest.raises(ConfigurationError, match="sharing"):
        await client.create_pool(PoolSpec("fair", nodes=1, sharing="equal"))  # type: ignore[arg-type]
