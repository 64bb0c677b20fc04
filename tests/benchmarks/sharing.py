"""How sessions share a pool: what each gets of the slots, and how long interactive tasks wait."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from batchflow import Client
from batchflow.model import PoolSpec
from tests.benchmarks.harness import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from batchflow.pool import Pool
    from batchflow.session import Session
    from tests.benchmarks.cases import Effort

TASKS = Path(__file__).parent / "tasks"
NAP = 0.02
"""Seconds that a task of a large session takes."""


def sharing(effort: Effort) -> Iterator[Figure]:
    """Four sessions of which two have a hundred times as much to do as the others, and interactive tasks."""
    seconds = 10.0 if effort.runs > 1 else 1.0
    fair = asyncio.run(_shared("fair", seconds))
    yield Figure("Jain's index of the slot time of four sessions, fair", [fair.index], "", at_least=0.95)
    if effort.runs > 1:  # a short run takes one cloud
        fifo = asyncio.run(_shared("fifo", seconds))
        yield Figure("Jain's index of the same, first come, first served", [fifo.index], "")
        yield Figure("tasks a second, fair to first come", [fair.rate / fifo.rate], "", at_least=0.95)
    ratio = _at(fair.beside, 0.99) / _at(fair.idle, 0.99)
    yield Figure("p99 of an interactive task beside bulk, to idle", [ratio], "", at_most=3.0)
    yield Figure("interactive task, idle: p50", [_at(fair.idle, 0.5) * 1e3], "ms")
    yield Figure("interactive task, beside bulk: p50", [_at(fair.beside, 0.5) * 1e3], "ms")


class _Shared:
    """What was seen in one pool."""

    def __init__(self) -> None:
        self.index = 0.0
        self.rate = 0.0
        self.idle: list[float] = []
        self.beside: list[float] = []


async def _shared(kind: Literal["fifo", "fair"], seconds: float) -> _Shared:
    found = _Shared()
    spec = PoolSpec("sharing", nodes=2, slots=1, files=(str(TASKS),), sharing=kind)
    async with Client.local(nodes=2, slots=1) as client:
        pool = await client.create_pool(spec)
        await pool.wait_ready(2)
        async with (
            pool.session("one") as one,
            pool.session("two") as two,
            pool.session("three") as three,
            pool.session("four") as four,
        ):
            await _four([one, two, three, four], seconds, found)
        if kind == "fair":
            await _interactive(pool, seconds, found)
    return found


async def _four(sessions: Sequence[Session], seconds: float, found: _Shared) -> None:
    """Let four sessions that have more to do than there is time for share the pool."""
    for session in sessions:
        await session.run("sleep.py", args=[NAP])
    for session, times in zip(sessions, (4, 2, 1.2, 1.2), strict=True):
        await session.submit_many("sleep.py", [[NAP]] * int(times * 2 * seconds / NAP))
    await asyncio.sleep(0.5)
    before, began = [session.counts.done for session in sessions], time.perf_counter()
    await asyncio.sleep(seconds)
    done = [session.counts.done - earlier for session, earlier in zip(sessions, before, strict=True)]
    found.rate = sum(done) / (time.perf_counter() - began)
    found.index = sum(done) ** 2 / (4 * sum(each * each for each in done))
    for session in sessions:
        await session.cancel_all()


async def _interactive(pool: Pool, seconds: float, found: _Shared) -> None:
    async with pool.session("person", priority="interactive") as person:
        await person.run("noop.py")
        found.idle = await _round_trips(person, seconds / 2)
        async with pool.session("bulk", priority="bulk") as bulk:
            await bulk.submit_many("sleep.py", [[NAP]] * int(3 * seconds / NAP))
            await bulk.flush()
            await asyncio.sleep(0.5)
            found.beside = await _round_trips(person, seconds)
            await bulk.cancel_all()


async def _round_trips(session: Session, seconds: float) -> list[float]:
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        await session.run("noop.py")
        taken.append(time.perf_counter() - began)
        await asyncio.sleep(0.02)
    return sorted(taken)


def _at(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]
