"""Links that are opened before anybody asks for them, and containers that wait for their SDK."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from batchflow.errors import BlobNotFound, QueueNotFound
from batchflow.ports.broker import Delivery, QueueRef, QueueSpec, Receiver, Sender
from batchflow.ports.storage import Container
from batchflow.testing import MemoryBroker, MemoryStorage
from node_agent.startup.early_links import EarlyContainer, EarlyLinks

TASKS = QueueRef("memory", "tasks")
RESULTS = QueueRef("memory", "results")


class Counting(MemoryBroker):
    """Notes what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def sender(self, queue: QueueRef) -> Sender:
        self.asked.append(f"sender {queue.entity}")
        return await super().sender(queue)

    async def receiver(self, queue: QueueRef, *, prefetch: int = 0, dead_letters: bool = False) -> Receiver:
        self.asked.append(f"receiver {queue.entity}{' dead' if dead_letters else ''}")
        return await super().receiver(queue, prefetch=prefetch, dead_letters=dead_letters)


async def counting() -> Counting:
    broker = Counting()
    for queue in (TASKS, RESULTS):
        await broker.create_queue(QueueSpec(queue.entity))
    return broker


async def test_the_first_links_are_opened_before_they_are_asked_for() -> None:
    """Those who ask first get them; those who ask again, or for dead letters, get their own."""
    broker = await counting()
    async with EarlyLinks(broker, receive=[TASKS], send=[RESULTS, RESULTS]) as ahead:
        await asyncio.sleep(0)
        assert sorted(broker.asked) == ["receiver tasks", "sender results"]
        await ahead.receiver(TASKS, dead_letters=True)
        first, second = await ahead.receiver(TASKS), await ahead.receiver(TASKS)
        assert first is not second
        await ahead.sender(RESULTS)
        await ahead.sender(TASKS)
        assert len(broker.asked) == 5


async def test_what_goes_wrong_ahead_is_told_to_who_asks() -> None:
    """And whoever asks again has it tried again."""
    broker = await counting()
    await broker.delete_queue("tasks")
    async with EarlyLinks(broker, receive=[TASKS], send=[]) as ahead:
        with pytest.raises(QueueNotFound):
            await ahead.receiver(TASKS)
        await broker.create_queue(QueueSpec("tasks"))
        async with await ahead.receiver(TASKS) as receiver:
            delivery: Delivery | None = await receiver.receive(0.0)
            assert delivery is None


async def test_links_that_nobody_asked_for_are_let_go() -> None:
    """Closing waits for them, opened or failed, and closes the broker beneath."""
    broker = await counting()
    await broker.delete_queue("results")
    ahead = EarlyLinks(broker, receive=[TASKS], send=[RESULTS])
    await asyncio.sleep(0)
    await ahead.aclose()
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


def _pass() -> None:
    """Let the import take its time."""


async def test_a_container_can_be_used_before_its_sdk_is_there() -> None:
    """Its requests wait for it, one of them cancelled or not; then they are the container's own."""
    storage = MemoryStorage()
    await storage.create_container("ctl")
    load: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    made = []

    def make() -> Container:
        made.append(storage.container("ctl"))
        return made[-1]

    async with EarlyContainer("https://here/ctl", load, make, _pass) as late:
        assert late.name == "ctl"
        writing, given_up = (asyncio.create_task(late.put(name, b"x")) for name in "ab")
        await asyncio.sleep(0)
        given_up.cancel()
        assert not made
        load.set_result(None)
        etag = await writing
        assert (await late.get("a")).data == b"x"
        assert await late.get_if_changed("a", etag) is None
        assert [info.name async for info in late.list()] == ["a"]
        assert await late.delete("a")
        with pytest.raises(BlobNotFound):
            await late.get("a")
    assert len(made) == 1


async def test_only_a_heartbeat_waits_for_the_sdk_without_hurry() -> None:
    """It overwrites a blob. Tasks wait for results, files, budgets and values."""
    storage = MemoryStorage()
    await storage.create_container("out")
    load: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    hurried: list[int] = []

    async def hurry_of(request: Callable[[Container], Awaitable[object]]) -> int:
        hurried.clear()
        make = partial(storage.container, "out")
        async with EarlyContainer("https://here/out", load, make, lambda: hurried.append(1)) as late:
            waiting = asyncio.ensure_future(request(late))
            await asyncio.sleep(0)
            waiting.cancel()
        return len(hurried)

    assert await hurry_of(lambda out: out.put("agents/one", b"beat")) == 0
    assert await hurry_of(lambda out: out.put("results/one", b"value", create=True)) == 1
    assert await hurry_of(lambda out: out.put("ledger", b"grains", if_match="etag")) == 1
    assert await hurry_of(lambda out: out.append("ledger", b"grain")) == 1
    assert await hurry_of(lambda out: out.get_signed("results/one", "signature")) == 1
    assert await hurry_of(lambda out: out.upload("files/one", "one")) == 1


async def test_an_sdk_that_cannot_be_imported_is_told_by_every_request() -> None:
    """And closing a container that was never made is nothing."""
    load: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    load.set_exception(ImportError("no SDK"))
    async with EarlyContainer("https://here/ctl", load, lambda: pytest.fail("made"), _pass) as late:
        for _ in range(2):
            with pytest.raises(ImportError, match="no SDK"):
                await late.get("a")
