"""A client's connections are cut while its methods work: each does what it says, or raises a typed error."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchflow import Client, Pool, PoolSpec
from batchflow.errors import BatchflowError, PoolNotFound, TaskError
from batchflow.job import Job
from batchflow.local.server import LocalCloud
from batchflow.model import Result, Status
from batchflow.session import Session
from batchflow.settings import Settings
from batchflow.streams import EventStream, MapResults, ProgressStream, SessionResults
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


async def submits_much(session: Session) -> None:
    """Arguments that travel as a blob."""
    text = "x" * 300_000
    (task,) = await session.submit_many("echo.py", [text])
    assert await task == [text]


async def shows_results(pool: Pool) -> None:
    """The results of a session that nothing else uses, each once."""
    async with pool.session() as session:
        await session.submit_many("echo.py", range(5))
        shown = await session.results().progress().collect()
        assert sorted(result.value[0] for result in shown) == list(range(5))


async def closes_a_map(session: Session) -> None:
    stream = session.map("sleeps.py", ["30"] * 3)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(PAUSE):
            await anext(stream)
    await stream.aclose()


async def cancels_all(pool: Pool) -> None:
    async with pool.session() as session:
        tasks = await session.submit_many("sleeps.py", ["30"] * 3)
        await session.cancel_all()
        assert {(await task.outcome()).status for task in tasks} == {Status.CANCELLED}


async def opens_a_file(result: Result) -> None:
    with await result.open("a.txt") as file:
        assert file.read() == b"this is a"


async def awaits(session: Session) -> None:
    assert await (await session.submit("echo.py", args=[4])) == [4]


async def connects(settings: Settings, pool_id: str) -> None:
    async with Client(settings) as client:
        assert (await client.pool(pool_id)).id == pool_id


async def deletes(pool: Pool, client: Client) -> None:
    """A pool that was deleted is not found."""
    await pool.delete()
    with pytest.raises(PoolNotFound):
        await client.pool(pool.id)


async def broadcasts(pool: Pool) -> None:
    results = await pool.broadcast("echo.py", args=[5])
    assert {*results} == {node.id for node in await pool.nodes()}
    assert {tuple(result.value or ()) for result in results.values()} == {(5,)}


async def stops(pool: Pool) -> None:
    await pool.stop()
    assert await pool.heartbeats() == []


Works = dict[str, Callable[[], Awaitable[object]]]
"""Calls, by the methods that they use."""


def uses(client: Client, pool: Pool, job: Job, session: Session, task: Task[Any], result: Result) -> Works:
    """What takes nothing away that the others need."""
    return {
        "Session.flush Session.submit_many": lambda: flushes(session),
        "Task.accepted Session.submit": lambda: accepts(session),
        "Session.run": lambda: runs(session),
        "Session.map MapResults.collect MapResults.__anext__": lambda: maps(session),
        "Session.submit_many Task.__await__": lambda: submits_much(session),
        "Session.results SessionResults.__anext__ SessionResults.progress": lambda: shows_results(pool),
        "ProgressStream.collect ProgressStream.__anext__": lambda: shows_results(pool),
        "MapResults.aclose": lambda: closes_a_map(session),
        "Task.cancel": lambda: cancels(session),
        "Task.outcome": task.outcome,
        "Task.__await__": lambda: awaits(session),
        "Result.open": lambda: opens_a_file(result),
        "Session.explain": session.explain,
        "Session.update_files": lambda: session.update_files([TASKS]),
        "Session.cancel_all": lambda: cancels_all(pool),
        "Pool.broadcast": lambda: broadcasts(pool),
        "Pool.session Session.__aenter__ Session.__aexit__": lambda: opens_and_closes(pool),
        "Client.__aenter__ Client.__aexit__": lambda: connects(client.settings, pool.id),
        "Client.pool": lambda: client.pool(pool.id),
        "Client.ensure_pool": lambda: client.ensure_pool(pool.id, files=[TASKS]),
        "Client.create_pool": lambda: client.create_pool(PoolSpec("made", nodes=0)),
        "Client.pools": lambda: first_of(client.pools()),
        "Client.find_pool": client.find_pool,
        "Client.sweep": client.sweep,
        "Client.dashboard": client.dashboard,
        "Client.logs": lambda: first_of(client.logs(pool.id)),
        "Pool.create_job": lambda: pool.create_job("created"),
        "Pool.jobs": lambda: first_of(pool.jobs()),
        "Pool.job": lambda: pool.job("kept"),
        "Pool.delete_job": lambda: pool.delete_job("none"),
        "Pool.start": pool.start,
        "Pool.heartbeats": pool.heartbeats,
        "Pool.nodes": pool.nodes,
        "Pool.explain": pool.explain,
        "Pool.resize": lambda: pool.resize(1),
        "Pool.repurpose": lambda: pool.repurpose([TASKS]),
        "Pool.cost": pool.cost,
        "Pool.client_settings": pool.client_settings,
        "Pool.wait_ready": lambda: pool.wait_ready(timeout=BOUND),
        "Job.counts": job.counts,
        "Job.close": job.close,
    }


def ends(client: Client, pool: Pool, other: Pool, job: Job, session: Session) -> list[Works]:
    """What takes things away: those of one table at once, one table after another."""
    return [
        {"Session.aclose": session.aclose, "Job.delete": job.delete},
        {"Pool.stop": lambda: stops(pool), "Pool.delete_all_jobs": pool.delete_all_jobs},
        {
            "Pool.delete": lambda: deletes(other, client),
            "Client.delete_pool": lambda: client.delete_pool("made"),
        },
        {"Client.delete_all_pools": client.delete_all_pools},
        {"Client.aclose": client.aclose},
    ]


SENDS_NOTHING = {
    *("Client.__await__", "Client.from_config", "Client.local"),
    *("Job.session", "Session.__await__", "Session.events", "Session.take", "Session.task"),
    *("Session.graph", "Session.report"),
    *("Result.exception", "Result.unwrap", "Task.file"),
    *("EventStream.__anext__", "EventStream.aclose"),
    *(f"{kind}.abandon" for kind in ("MapResults", "SessionResults", "ProgressStream")),
    *("SessionResults.aclose", "SessionResults.collect", "ProgressStream.progress"),
    *("ProgressStream.aclose", "MapResults.progress", "MapResults.reader_ended"),
}
"""Methods that use no connection by themselves, or are another name of one that is tried here."""


def test_each_public_method_is_tried_or_known_to_send_nothing() -> None:
    """A new method belongs into one of the tables here."""
    any_of: Any = (Client, Pool, Job, Session, Task, Result)  # the calls are not made
    client, pool, job, session, task, result = any_of
    tables = [uses(client, pool, job, session, task, result), *ends(client, pool, pool, job, session)]
    tried = {name for table in tables for key in table for name in key.split()}
    assert _methods() == tried | SENDS_NOTHING
    assert tried & SENDS_NOTHING == set()


def _methods() -> set[str]:
    kinds = (
        Client,
        Pool,
        Job,
        Session,
        Task,
        Result,
        MapResults,
        SessionResults,
        EventStream,
        ProgressStream,
    )
    found = set()
    for kind in kinds:
        special = {"__anext__"} if hasattr(kind, "__anext__") else {"__aenter__", "__aexit__", "__await__"}
        for name in dir(kind):
            is_public = not name.startswith("_") or name in special
            if is_public and callable(getattr(kind, name)):
                found.add(f"{kind.__name__}.{name}")
    return found


async def test_each_method_keeps_its_word_while_connections_are_cut() -> None:
    """The connections to Service Bus, Batch and Blob Storage, again and again, under many calls at once."""
    relays: list[Relay] = []
    cloud = LocalCloud(nodes=1, slots=2)
    try:
        settings = await relayed(await cloud.start(), relays)
        async with Client(settings) as client:
            pool = await client.ensure_pool("cut", files=[TASKS])
            other = await client.create_pool(PoolSpec("other", nodes=0))
            job, session = await pool.create_job("kept"), await pool.session("named")
            task = await session.submit("echo.py", args=1)
            result = await within((await session.submit("leaves_files.py", "a", "b")).outcome())
            await _try(uses(client, pool, job, session, task, result), relays)
            for table in ends(client, pool, other, job, session):
                await _try(table, relays)
            assert session.counts.sending == 0
    finally:
        for relay in relays:
            await relay.aclose()
        await cloud.aclose()


async def _try(works: Works, relays: list[Relay]) -> None:
    """Do all of it at once, to be quick, and cut what is connected."""
    going = {name: asyncio.ensure_future(_ended(work)) for name, work in works.items()}
    await _cut(relays)
    ended = dict(zip(going, await within(asyncio.gather(*going.values()), BOUND), strict=True))
    assert {name: end for name, end in ended.items() if not _is_typed(end)} == {}


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
