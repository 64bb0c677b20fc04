"""A client's connections are cut while its methods work: each does what it says, or raises a typed error."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from batchflow import Client, Pool
from batchflow.errors import BatchflowError, TaskError
from batchflow.job import Job
from batchflow.local.server import LocalCloud
from batchflow.model import Status
from batchflow.session import Session
from batchflow.settings import Settings
from batchflow.task import Task
from tests.chaos.proxy import Relay
from tests.support.waiting import within

TASKS = Path(__file__).parent / "tasks"
BOUND = 60.0
"""Seconds in which each call ends; many times what it takes."""
CUTS, PAUSE = 3, 0.05


async def relayed(settings: Settings, relays: list[Relay]) -> Settings:
    """Settings by which all connections of a client go through relays."""

    async def through(address: str | None) -> str:
        assert address is not None
        port = re.search(r"127\.0\.0\.1:(\d+)", address)
        assert port is not None
        relay = Relay("127.0.0.1", int(port[1]))
        relays.append(relay)
        return address.replace(port[0], f"127.0.0.1:{await relay.start()}")

    batch, storage, bus = settings.batch, settings.storage, settings.servicebus
    return replace(
        settings,
        batch=replace(batch, url=await through(batch.url)),
        storage=replace(storage, connection_string=await through(storage.connection_string)),
        servicebus=replace(bus, connection_string=await through(bus.connection_string)),
        session=replace(settings.session, patience=20.0, close_timeout=20.0),
    )


async def first_of(stream: object) -> None:
    async for _ in stream:  # type: ignore[attr-defined]
        return


async def flushes(session: Session) -> None:
    """What it returns for is true."""
    tasks = await session.submit_many("echo.py", range(5))
    await session.flush()
    assert all(task.status is not Status.SENDING for task in tasks)


async def accepts(session: Session) -> None:
    task = await session.submit("echo.py", args=1)
    await task.accepted()
    assert task.status is not Status.SENDING


async def runs(session: Session) -> None:
    assert await session.run("echo.py", args=3) == [3]


async def maps(session: Session) -> None:
    results = await session.map("echo.py", range(10)).collect()
    assert sorted(result.value[0] for result in results) == list(range(10))


async def cancels(session: Session) -> None:
    task = await session.submit("sleeps.py", "30")
    await task.cancel()
    assert (await task.outcome()).status is Status.CANCELLED


async def opens_and_closes(pool: Pool) -> None:
    async with pool.session("another") as session:
        tasks = await session.submit_many("echo.py", range(3))
    assert all(task.status is not Status.SENDING for task in tasks)


def calls(
    client: Client, pool: Pool, job: Job, session: Session, task: Task
) -> dict[str, Callable[[], Awaitable[object]]]:
    """The public methods that use the network, but those that take away what the others need."""
    return {
        "session.flush": lambda: flushes(session),
        "task.accepted": lambda: accepts(session),
        "session.run": lambda: runs(session),
        "session.map": lambda: maps(session),
        "task.cancel": lambda: cancels(session),
        "task.outcome": task.outcome,
        "session.explain": session.explain,
        "session.update_files": lambda: session.update_files([TASKS]),
        "session.open": lambda: opens_and_closes(pool),
        "client.pool": lambda: client.pool(pool.id),
        "client.ensure_pool": lambda: client.ensure_pool(pool.id, files=[TASKS]),
        "client.pools": lambda: first_of(client.pools()),
        "client.find_pool": client.find_pool,
        "client.sweep": client.sweep,
        "client.logs": lambda: first_of(client.logs(pool.id)),
        "pool.create_job": lambda: pool.create_job("created"),
        "pool.jobs": lambda: first_of(pool.jobs()),
        "pool.job": lambda: pool.job("kept"),
        "pool.delete_job": lambda: pool.delete_job("none"),
        "pool.start": pool.start,
        "pool.heartbeats": pool.heartbeats,
        "pool.nodes": pool.nodes,
        "pool.explain": pool.explain,
        "pool.resize": lambda: pool.resize(1),
        "pool.repurpose": lambda: pool.repurpose([TASKS]),
        "pool.client_settings": pool.client_settings,
        "pool.wait_ready": lambda: pool.wait_ready(timeout=BOUND),
        "job.counts": job.counts,
        "job.close": job.close,
    }


async def test_each_method_keeps_its_word_while_connections_are_cut() -> None:
    """All at once, to be quick; the connections to Service Bus, Batch and Blob Storage, again and again."""
    relays: list[Relay] = []
    cloud = LocalCloud(nodes=1, slots=2)
    try:
        settings = await relayed(await cloud.start(), relays)
        async with Client(settings) as client:
            pool = await client.ensure_pool("cut", files=[TASKS])
            job, session = await pool.create_job("kept"), await pool.session("named")
            task = await session.submit("echo.py", args=1)
            await within(task.accepted())
            works = calls(client, pool, job, session, task)
            going = {name: asyncio.ensure_future(_ended(work)) for name, work in works.items()}
            await _cut(relays)
            ends = dict(zip(going, await within(asyncio.gather(*going.values()), BOUND), strict=True))
            assert {name: end for name, end in ends.items() if not _is_typed(end)} == {}
            closing = asyncio.ensure_future(_ended(session.aclose))
            await _cut(relays)
            end = await within(closing, BOUND)
            assert _is_typed(end)
            assert end is not None or session.counts.sending == 0
    finally:
        for relay in relays:
            await relay.aclose()
        await cloud.aclose()


async def _cut(relays: list[Relay]) -> None:
    for _ in range(CUTS):
        await asyncio.sleep(PAUSE)
        for relay in relays:
            relay.cut(100, random.Random(0))


def _is_typed(end: Exception | None) -> bool:
    """Whether a call did what it says, or raised an error of batchflow's. No task is lost by a cut."""
    return end is None or (isinstance(end, BatchflowError) and not isinstance(end, TaskError))


async def _ended(work: Callable[[], Awaitable[object]]) -> Exception | None:
    try:
        await work()
    except Exception as error:
        return error
    return None
