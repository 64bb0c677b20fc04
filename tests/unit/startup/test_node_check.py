"""An agent that begins on a node that cannot run tasks says so, and goes on by itself when it can."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

import pytest

from batchflow.errors import StorageError
from batchflow.protocol import documents, layout
from batchflow.testing import MemoryContainer, MemoryStorage
from node_agent.startup import node_check
from node_agent.startup.node_check import NodeCheck, problem
from tests.support.agent_world import config
from tests.support.waiting import BOUND, eventually

if TYPE_CHECKING:
    from pathlib import Path

    from batchflow.ports.storage import Blob


class Disk:
    """Whether there is room on it."""

    def __init__(self) -> None:
        self.full = True

    def reserve(self, descriptor: int, offset: int, length: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A full one."""
    disk = Disk()
    monkeypatch.setattr(os, "posix_fallocate", disk.reserve)
    monkeypatch.setattr(node_check, "INTERVAL", 0.02)
    return disk


async def container() -> MemoryContainer:
    storage = MemoryStorage()
    await storage.create_container("all")
    return storage.container("all")


async def beat(out: MemoryContainer) -> documents.Heartbeat | None:
    found = [info.name async for info in out.list("agents/")]
    if not found:
        return None
    return documents.Heartbeat.decode((await MemoryContainer.get(out, found[0])).data)


async def test_a_full_disk_is_told_until_there_is_room(disk: Disk, tmp_path: Path) -> None:
    """By a heartbeat of an agent that starts; nothing of the look is left on the disk."""
    out = await container()
    check = NodeCheck(config(), "agent1", tmp_path / "agent", out, out)
    waiting = asyncio.create_task(check.passed())
    told = await eventually_beat(out)
    assert (told.agent, told.state, told.slots) == ("agent1", "starting", 1)
    assert "disk is full" in (told.trouble or "")
    assert not waiting.done()
    disk.full = False
    async with asyncio.timeout(BOUND):
        assert await waiting
    assert list((tmp_path / "agent").iterdir()) == []


async def eventually_beat(out: MemoryContainer) -> documents.Heartbeat:
    async def written() -> bool:
        return await beat(out) is not None

    await eventually(written)
    found = await beat(out)
    assert found is not None
    return found


async def test_an_agent_that_waits_for_room_can_be_drained(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has nothing to hand back."""
    monkeypatch.setenv("AZ_BATCH_JOB_ID", "agents")
    all_of_it = await container()
    order = documents.DrainOrder(job="agents", grace=0.0)
    await all_of_it.put(layout.DRAIN_BLOB, order.encode())
    check = NodeCheck(config(heartbeat_interval=0.5), "agent1", tmp_path, all_of_it, all_of_it)
    async with asyncio.timeout(BOUND):
        assert not await check.passed()


class Unreachable(MemoryContainer):
    """A Blob Storage that does not answer, until it does."""

    down = True

    async def get(self, name: str) -> Blob:
        if self.down:
            raise StorageError("get: connection refused", retryable=True)
        return await super().get(name)


async def test_after_a_step_back_an_agent_waits_until_its_node_reaches_blob_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It pulls no task meanwhile. The agent after the next one does not look."""
    monkeypatch.setattr(node_check, "INTERVAL", 0.02)
    storage = MemoryStorage()
    await storage.create_container("all")
    ctl = Unreachable(storage, "all")
    assert await NodeCheck(config(), "first", tmp_path, ctl, ctl).passed()
    node_check.note_step_back(tmp_path)
    waiting = asyncio.create_task(NodeCheck(config(), "second", tmp_path, ctl, ctl).passed())
    told = await eventually_beat(ctl)
    assert "does not reach Blob Storage" in (told.trouble or "")
    assert not waiting.done()
    ctl.down = False
    async with asyncio.timeout(BOUND):
        assert await waiting
    ctl.down = True
    assert await NodeCheck(config(), "third", tmp_path, ctl, ctl).passed()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """With what the system says of it."""
    (tmp_path / "file").write_bytes(b"")
    assert problem(tmp_path) is None
    said = problem(tmp_path / "file")
    assert said is not None
    assert str(tmp_path / "file") in said
