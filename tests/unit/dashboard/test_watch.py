"""Looking at a pool: each part on its own, whatever another part does."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from batchflow.dashboard import watch as module
from batchflow.dashboard.watch import PoolWatch
from batchflow.pools.open_sessions import OpenSession
from batchflow.protocol.documents import Heartbeat
from tests.support.simulated_pool import SimulatedPool
from tests.support.waiting import eventually


class FaultyPool(SimulatedPool):
    """A pool whose queues do not answer, and whose cost cannot be computed, when a test says so."""

    def __init__(self) -> None:
        super().__init__(2, history=1.0)
        self.answering = asyncio.Event()
        self.answering.set()
        self.wrong = self.own_broken = False
        self.asked = 0

    async def beats(self) -> list[Heartbeat]:
        self.asked += 1
        return await super().beats()

    async def queues(self) -> list[dict[str, Any]]:
        await self.answering.wait()
        return await super().queues()

    def own_sessions(self) -> list[OpenSession]:
        if self.own_broken:
            raise KeyError("a session that has gone")
        return super().own_sessions()

    async def cost(self) -> dict[str, Any]:
        if self.wrong:
            raise ValueError("a price without a currency")
        return await super().cost()


def running() -> list[str]:
    names = (task.get_name() for task in asyncio.all_tasks())
    return [name for name in names if name.startswith(("ask ", "dashboard of"))]


@pytest.fixture
def due_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK", 0.0)
    monkeypatch.setattr(module, "_PATIENCE", 0.01)


@pytest.mark.usefixtures("due_at_once")
async def test_a_service_that_does_not_answer_delays_no_other_part() -> None:
    """Heartbeats come on, and its question is asked once."""
    source = FaultyPool()
    watch = PoolWatch(source)
    watch.start()
    await asyncio.wait_for(watch.looked.wait(), 10)
    source.answering.clear()
    before = source.asked
    await eventually(lambda: source.asked >= before + 3 and "ask queues" in running())
    assert running().count("ask queues") == 1
    await watch.aclose()
    assert running() == []


@pytest.mark.usefixtures("due_at_once")
async def test_an_unexpected_error_of_one_part_is_told_on_the_page() -> None:
    """The others go on."""
    source = FaultyPool()
    source.wrong = True
    watch = PoolWatch(source)
    await watch.look()
    assert watch.looked.is_set()
    assert watch.parts["now"]["problems"] == [
        "cost cannot be shown: ValueError('a price without a currency')"
    ]
    assert watch.parts["queues"] == await source.queues()


@pytest.mark.usefixtures("due_at_once")
async def test_an_unexpected_error_of_a_look_does_not_end_the_looks() -> None:
    """The page goes on to say that it is live."""
    source = FaultyPool()
    watch = PoolWatch(source)
    source.own_broken = True
    watch.start()
    await eventually(lambda: source.asked)
    assert not watch.looked.is_set()
    source.own_broken = False
    await asyncio.wait_for(watch.looked.wait(), 10)
    await watch.aclose()


@pytest.mark.usefixtures("due_at_once")
async def test_a_watch_that_begins_again_has_not_looked_yet() -> None:
    """So a scrape after a pause gets the figures of now."""
    now = [1000.0]
    watch = PoolWatch(FaultyPool(), clock=lambda: now[0])
    watch.start()
    await asyncio.wait_for(watch.looked.wait(), 10)
    now[0] += 100.0  # longer than it goes on to look without a page
    await eventually(lambda: not running())
    watch.start()
    assert not watch.looked.is_set()
    await asyncio.wait_for(watch.looked.wait(), 10)
    await watch.aclose()
    watch.start()
    assert running() == []


async def test_a_session_that_has_closed_is_forgotten() -> None:
    """Another one of its name is told from its first task on."""

    class Told:
        """A session of this program, and what was asked of it."""

        job, name = "job", "alice"

        def __init__(self) -> None:
            self.tasks = self
            self.asked: list[int] = []

        def ended_since(self, seen: int) -> tuple[int, list[Any]]:
            self.asked.append(seen)
            return 5, []

    source, first, second = FaultyPool(), Told(), Told()
    watch = PoolWatch(source)
    for here in ([first], [first], [], [second]):
        source.sessions_here = here  # type: ignore[assignment]
        await watch.look()
    assert first.asked[-1] == 5
    assert second.asked == [0]
    assert orjson.loads(next(iter(watch.snapshot())).removeprefix(b"data: "))["pool"] == "simulated"


async def test_the_latest_runs_are_told_first_and_before_they_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A quarter of an hour of a large pool takes a while to count."""
    monkeypatch.setattr(module, "_CHUNK", 10)
    source = SimulatedPool(2, rate=5.0, history=10.0)
    watch = PoolWatch(source)
    told = watch.hub.watch()
    await anext(told)  # it watches now
    watch.start()
    first = []
    async for piece in told:
        document = orjson.loads(piece.removeprefix(b"data: "))
        if "runs" in document:
            first.append(document["runs"][0][0])
            if len(first) == 3:
                break
        elif "series" in document.get("parts", {}):
            assert sum(document["parts"]["series"]["rate"]) == 0
    order = [row[0] for row in watch.timeline.runs]
    assert first == [order[len(order) - 10], order[len(order) - 20], order[len(order) - 30]]
    await told.aclose()  # type: ignore[attr-defined]
    await watch.aclose()
