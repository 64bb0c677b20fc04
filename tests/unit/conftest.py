"""A client, a pool and an agent on in-memory doubles."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

import pytest

from batchflow.client import Client
from batchflow.pool import Pool
from batchflow.session import Session
from tests.support.agent import Agent
from tests.support.services import Doubles, settings


@pytest.fixture(autouse=True)
def _nothing_left_behind(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test that left an exception that was never retrieved, or a task destroyed while pending."""
    yield
    gc.collect()
    gc.freeze()  # what outlived the test is not searched again after each of the others
    noise = [record for record in caplog.get_records("call") if record.name == "asyncio"]
    assert not [record.getMessage() for record in noise if record.levelno >= logging.ERROR]


@pytest.fixture
def doubles() -> Doubles:
    return Doubles()


@pytest.fixture
def connect(doubles: Doubles, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Client]:
    """Make clients of the doubles; the arguments are settings of sessions."""

    async def to_the_doubles(*_: object) -> object:
        return doubles.services

    monkeypatch.setattr("batchflow.client.connect", to_the_doubles)
    monkeypatch.setattr("batchflow.pools.jobs._MAIL_WAIT", 0.01)
    return lambda **session: Client(settings(**session))


@pytest.fixture
async def client(connect: Callable[..., Client]) -> AsyncIterator[Client]:
    async with connect() as client:
        yield client


@pytest.fixture
async def pool(client: Client) -> Pool:
    return await client.ensure_pool("demo", files={"x.py": b"def do_action(engine, args): ..."})


@pytest.fixture
async def agent(doubles: Doubles, pool: Pool) -> Agent:
    """An agent that lives, and waits to be told what to do."""
    agent = Agent(doubles, pool)
    await agent.beat()
    return agent


@pytest.fixture
async def serving(agent: Agent) -> AsyncIterator[Agent]:
    """An agent that answers every task with its arguments."""
    task = asyncio.create_task(agent.serve())
    yield agent
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.fixture
async def session(pool: Pool) -> AsyncIterator[Session]:
    async with pool.session("client_1") as session:
        yield session
