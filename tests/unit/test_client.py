"""A client against in-memory doubles: its opening, its end, its pools."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from batchflow.client import Client
from batchflow.errors import BrokerError, ConfigurationError, PoolExists, PoolNotFound, SessionClosed
from batchflow.model import PoolSpec
from batchflow.settings import Settings
from tests.support.agent import Agent
from tests.support.services import Doubles
from tests.support.waiting import within


async def test_opened_by_await_and_closed_by_another_task(
    connect: Callable[..., Client], doubles: Doubles
) -> None:
    """As in two cells of a notebook; its services end with it."""
    client = await connect()
    pool = await client.ensure_pool("demo")
    assert pool.id == "demo"
    await asyncio.create_task(client.aclose())
    assert doubles.broker.closed
    await client.aclose()


async def test_client_that_is_not_open_raises_session_closed(connect: Callable[..., Client]) -> None:
    """Before and after, in words."""
    never = connect()
    with pytest.raises(SessionClosed, match="not open"):
        await never.ensure_pool("demo")
    async with connect() as client:
        pool = await client.ensure_pool("demo")
    for call in (client.ensure_pool("demo"), client.pool("demo"), client.delete_pool("demo"), pool.start()):
        with pytest.raises(SessionClosed, match="not open"):
            await call
    with pytest.raises(SessionClosed):
        await client


async def test_failed_connection_raises_at_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    """The opening raises what was wrong, and nothing is left."""

    async def refuse(*_: object) -> object:
        raise ConfigurationError("servicebus.connection_string: not one")

    monkeypatch.setattr("batchflow.client.connect", refuse)
    before = asyncio.all_tasks()
    with pytest.raises(ConfigurationError, match="not one"):
        async with Client(Settings()):
            pass
    assert asyncio.all_tasks() == before


async def test_closing_closes_all_sessions(connect: Callable[..., Client]) -> None:
    """Of whatever pool object; who waits is told, and what was submitted is sent."""
    async with connect() as client:
        first = await client.ensure_pool("one")
        again = await client.pool("one")
        (listed,) = [pool async for pool in client.pools()]
        sessions = [await pool.session(name) for pool, name in ((first, "a"), (again, "b"), (listed, "c"))]
        tasks = [await session.submit("x.py") for session in sessions]
        waiting = [asyncio.ensure_future(task.outcome()) for task in tasks]
        await asyncio.sleep(0)
    for session, task in zip(sessions, waiting, strict=True):
        assert session.closed
        assert session.counts.queued == 1
        with pytest.raises(SessionClosed):
            await within(task)


async def test_closing_logs_a_session_that_cannot_flush(
    connect: Callable[..., Client], doubles: Doubles, caplog: pytest.LogCaptureFixture
) -> None:
    """Bounded, and logged with what was lost."""
    client = await connect(close_timeout=0.1)
    session = await (await client.ensure_pool("one")).session("a")
    doubles.broker.faults.extend([BrokerError("down", retryable=True)] * 1000)
    await session.submit("x.py")
    with pytest.raises(BrokerError, match="1 of its tasks"):
        await within(client.aclose(), 2.0)
    assert any(record.message.startswith("session_close_failed: ") for record in caplog.records)


async def test_pools_are_found_by_another_client(connect: Callable[..., Client], doubles: Doubles) -> None:
    """By their id, in any case; one that is not there is an error."""
    async with connect() as client:
        await client.create_pool(PoolSpec("Demo", nodes=3))
        with pytest.raises(PoolExists):
            await client.create_pool(PoolSpec("demo"))
    async with connect() as client:
        doubles.broker.closed = False
        pool = await client.pool("demo")
        assert pool.id == "Demo"
        assert [each.id async for each in client.pools()] == ["Demo"]
        with pytest.raises(PoolNotFound):
            await client.pool("another")


async def test_deleting_pools(client: Client, doubles: Doubles) -> None:
    """One, those of batchflow, and never anybody else's machines."""
    for name in ("a", "b", "c"):
        await client.ensure_pool(name)
    foreign = doubles.compute.known.pop("c")
    doubles.compute.known["foreign"] = replace(foreign, id="foreign", metadata={})
    await client.pool("foreign")
    await client.delete_pool("A")
    with pytest.raises(PoolNotFound):
        await client.delete_pool("a")
    await client.delete_all_pools()
    assert [pool async for pool in client.pools()] == []
    assert list(doubles.compute.known) == ["foreign"]
    assert await doubles.broker.queues() == []


async def test_deleting_a_pool_by_another_spelling_ends_its_sessions(client: Client) -> None:
    """Ids are not told apart by case."""
    session = await (await client.ensure_pool("Demo")).session("c")
    await within(client.delete_pool("dEMO"))
    assert session.closed


async def test_account_without_pools_lists_none(client: Client) -> None:
    """A fresh account has not even the index."""
    assert [pool async for pool in client.pools()] == []
    await client.delete_all_pools()


async def test_tasks_and_results_of_two_pools_do_not_mix(client: Client, doubles: Doubles) -> None:
    """Their tasks and results do not mix."""
    answers = []
    for name in ("one", "two"):
        pool = await client.ensure_pool(name)
        agent = Agent(doubles, pool)
        session = await pool.session("c")
        task = await session.submit("x.py", args=name)
        await agent.answer(*await agent.take())
        answers.append(await within(task))
    assert answers == [["one"], ["two"]]


@pytest.mark.parametrize(
    "options", [{"nodes": -1}, {"slots": -1}, {"latency": -0.1}, {"autoscale_interval": 0}]
)
def test_impossible_options_of_a_local_cloud_are_refused(options: dict[str, float]) -> None:
    """Refused where it is written."""
    with pytest.raises(ConfigurationError, match="negative"):
        Client.local(**options)  # type: ignore[arg-type]


def test_missing_settings_are_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused at once, by name; for the local cloud nothing is lacking."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text('[batch]\naccount = "a"')
    with pytest.raises(ConfigurationError, match=r"batch\.key"):
        Client.from_config(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text('target = "local"')
    assert Client.from_config(tmp_path / "b.toml").settings.target == "local"
