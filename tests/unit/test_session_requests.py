"""How many requests a session makes at rest: each costs money, and so do those of clients that only wait."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from batchflow.client import Client
from batchflow.errors import BrokerError, MailboxInUse, SessionClosed
from batchflow.model import Budget, PoolSpec
from batchflow.pool import Pool
from batchflow.protocol.documents import Presence
from batchflow.protocol.layout import session_blob
from batchflow.settings import SessionSettings
from tests.support import virtual_time
from tests.support.agent import Agent
from tests.support.services import Doubles, MemoryCompute
from tests.support.session_parts import parts_of

MINUTES = 6
"""How long is counted, by a clock that a test moves."""


class Requests(Counter[str]):
    """The requests of a client, by kind. Waiting for messages is none: a link is open."""

    def __init__(self, doubles: Doubles, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._storage = doubles.storage
        self._seen = 0
        for name in vars(MemoryCompute):
            if asyncio.iscoroutinefunction(call := getattr(doubles.compute, name)):
                monkeypatch.setattr(doubles.compute, name, self._counted(f"batch {name}", call))
        broker = doubles.broker
        monkeypatch.setattr(broker, "figures", self._counted("figures", broker.figures))
        monkeypatch.setattr(broker, "sender", self._counted("open a sender", broker.sender))
        opened = broker.mailbox

        async def mailbox(*args: Any, **options: Any) -> Any:
            self["open a mailbox"] += 1
            found = await opened(*args, **options)
            for verb in ("renew", "complete", "get_state", "set_state"):
                monkeypatch.setattr(found, verb, self._counted(f"{verb} mailbox", getattr(found, verb)))
            return found

        monkeypatch.setattr(broker, "mailbox", mailbox)

    def _counted(
        self, kind: str, call: Callable[..., Awaitable[Any]]
    ) -> Callable[..., Coroutine[Any, Any, Any]]:
        async def counted(*args: Any, **options: Any) -> Any:
            self[kind] += 1
            return await call(*args, **options)

        return counted

    def restart(self) -> None:
        """Count from now on."""
        self.clear()
        self._seen = len(self._storage.calls)

    def a_minute(self, minutes: float) -> dict[str, float]:
        """Return the mean of a minute for each kind."""
        self.update(f"{verb} {name.split('/')[0]}" for verb, name in self._storage.calls[self._seen :])
        self._seen = len(self._storage.calls)
        return {kind: count / minutes for kind, count in sorted(self.items())}


def with_real_intervals(client: Client) -> Client:
    """The client's settings for sessions and agents as users have them."""
    settings = client._settings
    agent = replace(settings.agent, heartbeat_interval=5.0)
    client._settings = replace(settings, session=SessionSettings(), agent=agent)
    return client


async def counted_at_rest(
    pool: Pool, requests: Requests, name: str | None = None, rest: float = 90.0
) -> dict[str, float]:
    """What a session without tasks asks for in a minute, once it has opened and its client has swept."""
    async with pool.session() if name is None else pool.session(name):
        await asyncio.sleep(rest)
        requests.restart()
        await asyncio.sleep(MINUTES * 60)
        return requests.a_minute(MINUTES)


@pytest.mark.parametrize("name", [None, "found-again"])
@pytest.mark.parametrize("budget", [None, Budget(node_hours=5)])
def test_session_of_a_pool_without_nodes_makes_six_requests_a_minute_at_most(
    connect: Callable[..., Client],
    doubles: Doubles,
    monkeypatch: pytest.MonkeyPatch,
    name: str | None,
    budget: Budget | None,
) -> None:
    """The lock of its mailbox, its sign of life, its job, and what other clients wish for."""
    requests = Requests(doubles, monkeypatch)

    async def main() -> dict[str, float]:
        async with with_real_intervals(connect()) as client:
            spec = PoolSpec("grows", max_nodes=4, files=({"x.py": b""},), budget=budget)
            return await counted_at_rest(await client.create_pool(spec), requests, name)

    found = virtual_time.run(main, monkeypatch)
    assert sum(found.values()) <= 6.0, found


def test_session_rests_again_when_its_agents_have_left(
    connect: Callable[..., Client], doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a task, once its agent was idle for long enough."""
    requests = Requests(doubles, monkeypatch)

    async def main() -> dict[str, float]:
        async with with_real_intervals(connect()) as client:
            pool = await client.create_pool(PoolSpec("grows", max_nodes=4, files=({"x.py": b""},)))
            agent = Agent(doubles, pool)
            async with pool.session() as session:
                await asyncio.sleep(700.0)
                await agent.beat()
                task = await session.submit("x.py", args=1)
                await agent.answer(*await agent.take())
                assert await task == [1]
                await agent.beat(state="exiting")
                await asyncio.sleep(700.0)
                requests.restart()
                await asyncio.sleep(MINUTES * 60)
                return requests.a_minute(MINUTES)

    found = virtual_time.run(main, monkeypatch)
    assert sum(found.values()) <= 6.0, found


@pytest.mark.parametrize("failing", [0, 7])
def test_mailbox_of_a_session_without_tasks_is_held_by_fewer_renewals(
    connect: Callable[..., Client], doubles: Doubles, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Quiet for long, the session has the same mailbox as in the beginning, also when a renewal fails."""

    async def main() -> int:
        async with with_real_intervals(connect()) as client:
            pool = await client.ensure_pool("quiet", files={"x.py": b""})
            async with pool.session("c") as session:
                mailbox = parts_of(session).receiver.mailbox
                assert mailbox is not None
                renewals, renew = 0, mailbox.renew

                async def counted() -> None:
                    nonlocal renewals
                    renewals += 1
                    if renewals == failing:
                        raise BrokerError("no answer", retryable=True)
                    await renew()

                monkeypatch.setattr(mailbox, "renew", counted)
                await asyncio.sleep(600)
                assert parts_of(session).receiver.mailbox is mailbox
                return renewals

    assert 28 <= virtual_time.run(main, monkeypatch) <= 34


def test_living_holder_at_rest_is_told_from_a_dead_one_by_its_lock(
    connect: Callable[..., Client], doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its signs of life come seldom. It is named once its lock has outlasted a lock's duration."""

    async def main() -> None:
        async with with_real_intervals(connect()) as client, with_real_intervals(connect()) as other:
            pool = await client.create_pool(PoolSpec("grows", max_nodes=4, files=({"x.py": b""},)))
            async with pool.session("c"):
                await asyncio.sleep(200)
                elsewhere = await other.pool("grows")
                asked = asyncio.get_running_loop().time()
                with pytest.raises(MailboxInUse, match="process"):
                    await elsewhere.session("c")
                assert asyncio.get_running_loop().time() - asked < 60

    virtual_time.run(main, monkeypatch)


def test_dead_holder_at_rest_is_followed_when_its_lock_has_run_out(
    connect: Callable[..., Client], doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although its last sign of life said that the next one comes in two minutes."""

    async def main() -> None:
        async with with_real_intervals(connect()) as client:
            pool = await client.create_pool(PoolSpec("grows", max_nodes=4, files=({"x.py": b""},)))
            queue = pool.runtime.manifest.results_queues[0]
            presence = Presence("a client that was killed", "dead", 0.0, 120.0)
            await pool.runtime.ctl.put(session_blob("default", "c"), presence.encode())
            await asyncio.sleep(20)
            await doubles.broker.mailbox(queue, "default/c")
            session = await pool.session("c")
            await session.aclose()

    virtual_time.run(main, monkeypatch)


def test_deleted_job_ends_a_session_without_tasks_within_a_minute(
    connect: Callable[..., Client], doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with tasks sees it within `session.presence_interval`."""

    async def main() -> None:
        async with with_real_intervals(connect()) as client, with_real_intervals(connect()) as other:
            pool = await client.ensure_pool("p", files={"x.py": b""})
            job = await pool.create_job("j")
            session = await job.session("c")
            await asyncio.sleep(100)
            await (await other.pool("p")).delete_job("j")
            await asyncio.sleep(70)
            with pytest.raises(SessionClosed, match="deleted"):
                await session.submit("x.py")

    virtual_time.run(main, monkeypatch)
