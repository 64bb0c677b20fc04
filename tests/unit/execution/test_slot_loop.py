"""The loop of a slot: tasks are prepared, started, followed and ended in their order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from batchflow.errors import StorageError
from batchflow.model import Status
from batchflow.protocol import wire
from batchflow.testing import MemoryContainer, MemoryStorage
from node_agent.bundles.task_files import FileCache
from node_agent.execution.outcomes import Execution, Outcome, failed
from node_agent.execution.resources import TaskResources
from node_agent.execution.slot_loop import SlotLoop
from node_agent.scheduling import events as to
from tests.support.agent_world import (
    NO_FOLDER,
    FakeBundles,
    FakeEnvironments,
    FakeRunning,
    FakeSlot,
    behave,
    succeed,
    task,
)
from tests.support.slot_bench import ANY_TIME


def follows(commands: list[to.Command]) -> list[tuple[int, ...]]:
    return [each.tasks for each in commands if isinstance(each, to.Follow)]


async def test_what_follows_before_the_slot_was_given_its_first_task() -> None:
    """A start and what follows it may come in one breath: each runs once, in this order, and what was
    prepared and not started does not."""
    slot = FakeSlot(behave())
    ended: list[int] = []
    free = asyncio.Event()

    def feed(*events: to.Event) -> None:
        for event in events:
            match event:
                case to.Prepared():
                    loop.start((1,), ANY_TIME)
                    loop.follow({3: task(3), 4: task(4)}, ANY_TIME)
                case to.Ended(number):
                    ended.append(number)
                case to.Freed():
                    free.set()

    nowhere: Any = None
    resources = TaskResources(
        "agent",
        FakeBundles(),
        FakeEnvironments(),
        nowhere,
        nowhere,
        FakeRunning(),
        1024,
        1024,
        FileCache(NO_FOLDER),
    )
    loop = SlotLoop(0, slot, resources, feed=feed)
    serving = asyncio.create_task(loop.serve())
    loop.prepare({1: task(1), 2: task(2)})
    async with asyncio.timeout(20):
        await free.wait()
    serving.cancel()
    assert ended == [1, 3, 4]
    assert slot.begun == [task(number).uid for number in ended]


class Played:
    """A loop whose slot is a double; each task is started as soon as it is prepared."""

    def __init__(
        self,
        slot: FakeSlot,
        out: MemoryContainer | None = None,
        bundles: FakeBundles | None = None,
        environments: FakeEnvironments | None = None,
    ) -> None:
        self.events: list[to.Event] = []
        self.free = asyncio.Event()
        stored: Any = out
        resources = TaskResources(
            agent="agent",
            bundles=bundles or FakeBundles(),
            environments=environments or FakeEnvironments(),
            ctl=stored,
            out=stored,
            running=FakeRunning(),
            inline_limit=1024,
            result_limit=4096,
            files=FileCache(NO_FOLDER),
        )
        self.loop = SlotLoop(0, slot, resources, feed=self._feed)

    def _feed(self, *events: to.Event) -> None:
        self.events += events
        for event in events:
            if isinstance(event, to.Prepared):
                self.loop.start(self._numbers, ANY_TIME)
            elif isinstance(event, to.Freed):
                self.free.set()

    async def run(self, *numbers: int) -> list[to.Ended | to.Unable]:
        """The events of these tasks."""
        return await self.run_items({number: task(number) for number in numbers})

    async def run_items(self, items: dict[int, wire.TaskItem]) -> list[to.Ended | to.Unable]:
        """The events of these tasks."""
        self._numbers = tuple(items)
        serving = asyncio.create_task(self.loop.serve())
        self.loop.prepare(items)
        async with asyncio.timeout(20):
            await self.free.wait()
        serving.cancel()
        await asyncio.wait([serving])
        return [event for event in self.events if isinstance(event, (to.Ended, to.Unable))]


async def test_tasks_that_the_node_cannot_run_are_given_back() -> None:
    """All that have not ended; the slot is put in order before it is free."""

    def no_room(execution: Execution) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    slot = FakeSlot(behave(ok=no_room))
    events = await Played(slot).run(1, 2)
    assert [event.task for event in events if isinstance(event, to.Unable)] == [1, 2]
    assert "No space left" in (events[0].error or "")
    assert slot.restored == 1


async def test_a_failure_in_a_slot_whose_folder_is_gone_is_the_nodes() -> None:
    """A success is a success."""
    slot = FakeSlot(behave())

    def fail(execution: Execution) -> Outcome:
        slot.intact = False
        return failed("TaskFailed", "FileNotFoundError")

    slot.behaviours["ok"] = fail
    (event,) = await Played(slot).run(1)
    assert isinstance(event, to.Unable)
    assert slot.restored == 1
    slot.behaviours["ok"] = succeed
    slot.intact = False
    (event,) = await Played(slot).run(1)
    assert isinstance(event, to.Ended)


async def test_what_a_task_left_and_the_node_lost_makes_no_outcome(tmp_path: Path) -> None:
    """A file that the task itself has forbidden to read is the task's own."""
    storage = MemoryStorage()
    await storage.create_container("out")

    class Refusing(MemoryContainer):
        error: Exception = FileNotFoundError("gone")

        async def upload(self, name: str, path: Any, *, create: bool = False) -> None:
            raise self.error

    out = Refusing(storage, "out")

    def leave(execution: Execution) -> Outcome:
        return Outcome(Status.SUCCEEDED, outputs=(tmp_path / "file",), output_folder=tmp_path)

    (event,) = await Played(FakeSlot(behave(ok=leave)), out).run(1)
    assert isinstance(event, to.Unable)
    out.error = StorageError("the name is too long")
    (event,) = await Played(FakeSlot(behave(ok=leave)), out).run(1)
    assert isinstance(event, to.Ended)
    assert event.failure is not None
    out.error = PermissionError("not yours")
    (event,) = await Played(FakeSlot(behave(ok=leave)), out).run(1)
    assert isinstance(event, to.Ended)
    assert event.failure is not None


class Unreachable(MemoryContainer):
    """Blob Storage, from a node that does not reach it."""

    async def get(self, name: str) -> Any:
        raise StorageError("connection refused", retryable=True)

    async def put(self, name: str, data: bytes, *, if_match: str | None = None, create: bool = False) -> str:
        raise StorageError("connection refused", retryable=True)

    async def upload(self, name: str, path: Any, *, create: bool = False) -> None:
        raise StorageError("connection refused", retryable=True)


@contextlib.asynccontextmanager
async def unreachable(bundle_hash: str) -> AsyncIterator[NoReturn]:
    """A bundle that the node cannot fetch."""
    raise StorageError("connection refused", retryable=True)
    yield


class UnreachableBundles(FakeBundles):
    use = staticmethod(unreachable)


class UnreachableEnvironments(FakeEnvironments):
    use = staticmethod(unreachable)


def leaves_a_file(execution: Execution) -> Outcome:
    return Outcome(Status.SUCCEEDED, outputs=(Path("/file"),), output_folder=Path("/"))


def returns_much(execution: Execution) -> Outcome:
    return Outcome(Status.SUCCEEDED, b"1" * 2000)


@pytest.mark.parametrize(
    ("item", "parts"),
    [
        (task(1), {"bundles": UnreachableBundles()}),
        (task(1, environment="e" * 64), {"environments": UnreachableEnvironments()}),
        (replace(task(1), params=wire.Reference("arguments", 10)), {}),
        (task(1, "file"), {}),
        (task(1, "much"), {}),
    ],
    ids=["bundle", "environment", "arguments", "output file", "large result"],
)
async def test_blob_storage_that_a_node_does_not_reach_makes_no_outcome(
    item: wire.TaskItem, parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the task needed of it; another node tries, as often as for a node that cannot run tasks."""
    monkeypatch.setattr("node_agent.bundles.task_inputs.TRIES", 1)
    slot = FakeSlot(behave(file=leaves_a_file, much=returns_much))
    played = Played(slot, Unreachable(MemoryStorage(), "all"), **parts)
    (event,) = await played.run_items({1: item})
    assert isinstance(event, to.Unable)
    assert not event.began
    assert "connection refused" in event.error
