"""Programs that ensure, start or delete one pool at once: whatever the order of their requests, one pool."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchflow import Client, Pool
from batchflow.errors import PoolNotFound
from batchflow.local.faults import Faults
from tests.e2e.test_interrupted import Stepping, left_of

ECHO = {"echo.py": b"def do_action(engine, args):\n    return args\n"}
ROUNDS = 15
PAUSE = 0.012
"""Seconds that a request is held back at most: some times as long as one takes."""


class Shuffling:
    """Holds each request back for a while that chance decides, so that every order comes about in time."""

    cut = False

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    async def take(self, request: Any) -> Any:
        await asyncio.sleep(self._chance.random() * PAUSE)
        return await request


@pytest.fixture
async def clients(cloud_config: Path) -> AsyncIterator[list[Client]]:
    """Three programs, as far as the cloud can see."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Client.from_config(cloud_config)) for _ in range(3)]


def shuffle(clients: list[Client], seed: int) -> None:
    for number, client in enumerate(clients):
        services, steps = client.connections, Shuffling(seed * 10 + number)
        client._connected = replace(
            services,
            queues_admin=Stepping(plain(services.admin), steps),  # type: ignore[arg-type]
            storage=Stepping(plain(services.storage), steps),  # type: ignore[arg-type]
            machines=Stepping(plain(services.compute), steps),  # type: ignore[arg-type]
        )


def plain(service: Any) -> Any:
    return service._service if isinstance(service, Stepping) else service


async def test_clients_that_ensure_a_pool_at_once_share_one(clients: list[Client], name: str) -> None:
    """One client makes the pool; nothing is left of what the others made."""
    for seed in range(ROUNDS):
        shuffle(clients, seed)
        pool_id = f"{name}-{seed}"
        pools = await asyncio.gather(*(each.ensure_pool(pool_id, files=ECHO, nodes=0) for each in clients))
        assert len({pool.runtime.manifest.prefix for pool in pools}) == 1
        assert sorted(pool.origin.choice for pool in pools) == ["created", "reused", "reused"]
        assert len(await left_of(clients[0], pool_id)) == 6  # two queues, two containers, machines, manifest
        await pools[seed % 3].delete()
        await gone(clients[0], pool_id)


async def gone(client: Client, pool_id: str) -> None:
    async with asyncio.timeout(20):
        while await left_of(client, pool_id):  # noqa: ASYNC110 - machines take a moment
            await asyncio.sleep(0.02)


async def test_sessions_that_start_agents_at_once_start_one_for_each_node(
    clients: list[Client], name: str
) -> None:
    """All agents are in one job, however often they were ended before."""
    await Faults(clients[0].settings).slow_start(name, 3600.0)
    pools = [await each.ensure_pool(name, files=ECHO, nodes=2) for each in clients]
    for seed in range(ROUNDS):
        shuffle(clients, seed)
        await asyncio.gather(*(pool.start() for pool in (*pools, *pools)))
        assert await agents(pools) == ["agent-0", "agent-1"]
        await asyncio.gather(*(pool.stop(drain=False) for pool in pools))
    await pools[0].delete()


async def agents(pools: list[Pool]) -> list[str]:
    """The living agents of every job that any of the clients knows."""
    compute = pools[0].runtime.connections.compute
    jobs = {pool.runtime.manifest.agents_job for pool in pools}
    tasks = [task for job in jobs for task in await compute.tasks(job)]
    return sorted(task.id for task in tasks if task.state != "completed")


async def test_pool_ensured_while_it_is_deleted_is_whole_or_gone(clients: list[Client], name: str) -> None:
    """Several clients do either."""
    first, second, third = clients
    for seed in range(ROUNDS):
        shuffle(clients, seed)
        pool_id = f"{name}-{seed}"
        await first.ensure_pool(pool_id, nodes=0)
        await asyncio.gather(
            delete(first, pool_id), delete(second, pool_id), third.ensure_pool(pool_id, nodes=0)
        )
        pool = await third.ensure_pool(pool_id, files=ECHO, nodes=0)
        await (await pool.create_job("whole")).delete()
        assert len(await left_of(first, pool_id)) == 6
        await asyncio.gather(delete(first, pool_id), delete(second, pool_id), delete(third, pool_id))
        await gone(first, pool_id)


async def delete(client: Client, pool_id: str) -> None:
    with contextlib.suppress(PoolNotFound):
        await client.delete_pool(pool_id)


PROGRAM = """
import asyncio, json, sys
from batchflow import Client

async def main(config, name, rounds):
    async with Client.from_config(config) as client:
        print("ready", flush=True)
        for number in range(rounds):
            sys.stdin.readline()
            pool = await client.ensure_pool(f"{name}-{number}", nodes=0)
            await pool.start()
            print(json.dumps([pool.origin.choice, pool.runtime.manifest.prefix]), flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


async def test_two_processes_that_ensure_a_pool_at_once_share_it(
    client: Client, cloud_config: Path, name: str
) -> None:
    """They start at the same moment, again and again: one makes the pool, the other reuses it."""
    rounds = 8
    programs = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, str(cloud_config), name, str(rounds)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(2)
    ]

    async def said(program: asyncio.subprocess.Process) -> str:
        assert program.stdout is not None
        async with asyncio.timeout(60):
            return (await program.stdout.readline()).decode().strip()

    assert [await said(program) for program in programs] == ["ready", "ready"]
    for number in range(rounds):
        for program in programs:
            assert program.stdin is not None
            program.stdin.write(b"go\n")
        (first, one), (second, other) = [json.loads(await said(program)) for program in programs]
        assert one == other
        assert sorted([first, second]) == ["created", "reused"]
        await client.delete_pool(f"{name}-{number}")
    for program in programs:
        assert await program.wait() == 0
