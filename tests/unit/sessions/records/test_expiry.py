"""Tasks that expire: in the outbox, behind others, in the queue; and what travels of that."""

from __future__ import annotations

import asyncio
import gc
import weakref
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, cast

import orjson
import pytest

from batchflow.errors import ConfigurationError, DependencyFailed, TaskExpired
from batchflow.model import Status
from batchflow.pool import Pool
from batchflow.session import Session
from batchflow.sessions.records.expiry import ExpiryWatch
from batchflow.sessions.records.outcomes import Outcomes
from batchflow.sessions.records.tracker import Entry, Tracker, cancelled_result
from batchflow.support.waiting import ChangeNotifier
from tests.support import virtual_time
from tests.support.agent import Agent
from tests.support.services import Doubles
from tests.support.waiting import eventually, within


async def test_what_travels_is_the_time_that_is_left(session: Session, agent: Agent) -> None:
    """In seconds, of a number and of a timedelta; without a limit there is no such field."""
    for expires in (60, timedelta(minutes=2), None):
        await session.submit("x.py", 1, expires=expires)
    first, second, third = sorted(await agent.take(3), key=lambda item: int(item.task_id))
    assert first.expires is not None
    assert second.expires is not None
    assert 59.0 < first.expires <= 60.0
    assert 119.0 < second.expires <= 120.0
    assert third.expires is None
    await agent.answer(first, second, third, value=1)


async def test_an_unsent_task_ends_when_its_time_is_over(session: Session, doubles: Doubles) -> None:
    """It never leaves; the one before it, which the broker may have, is sent when the broker is back."""
    doubles.broker.gate.clear()
    await session.submit("x.py", args="first")
    await eventually(lambda: doubles.broker.tried)
    late = await session.submit("x.py", args="late", expires=0.02)
    with pytest.raises(TaskExpired, match="had not begun"):
        await within(late)
    assert (await late.outcome()).status is Status.FAILED
    doubles.broker.gate.set()


async def test_a_task_that_waits_for_another_ends_when_its_time_is_over(
    session: Session, agent: Agent
) -> None:
    """And with it what waits for it. The input goes on."""
    first = await session.submit("x.py", 1)
    late = await session.submit("y.py", [first], expires=0.02)
    behind = await session.submit("z.py", [late])
    with pytest.raises(TaskExpired):
        await within(late)
    with pytest.raises(DependencyFailed, match=r"y\.py"):
        await within(behind)
    (item,) = await agent.take()
    await agent.answer(item, value=1)
    assert await within(first) == 1


async def test_what_waits_in_the_queue_ends_without_an_agent(session: Session, doubles: Doubles) -> None:
    """The broker dead-letters the message, and the session looks there at once; one that lives on stays."""
    late = await session.submit_many("x.py", [1, 2], expires=0.1)
    stays = await session.submit("x.py", 3)
    for task in late:
        with pytest.raises(TaskExpired):
            await within(task)
    assert stays.status is Status.QUEUED


async def test_waiting_tasks_of_an_earlier_session_expire_by_their_submit(pool: Pool, agent: Agent) -> None:
    async with pool.session("client_1") as first:
        await first.submit("x.py", 1, task_id="input")
        await first.submit("y.py", args=[first.task("input")], expires=0.3, task_id="late")
        await first.flush()
    async with pool.session("client_1") as second:
        results = [await within(anext(second.results()))]
        assert [(each.task_id, each.kind) for each in results] == [("late", "TaskExpired")]
        (item,) = await agent.take()
        assert orjson.dumps(item.params) == b"[1]"
        await agent.answer(item, value=1)


@pytest.mark.parametrize("expires", [0, -1, float("nan"), float("inf"), "5", True, timedelta(0)])
async def test_an_expiry_that_is_none_is_refused(session: Session, expires: Any) -> None:
    with pytest.raises(ConfigurationError, match="expires is"):
        await session.submit("x.py", expires=expires)
    with pytest.raises(ConfigurationError, match="expires is"):
        session.map("x.py", [1], expires=expires)


@dataclass
class _Watched:
    """A watch, and the tasks that it ends."""

    tracker: Tracker = field(default_factory=Tracker)
    change: ChangeNotifier = field(default_factory=ChangeNotifier)
    looks: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.resolve = self.tracker.resolve
        self.watch = ExpiryWatch(self.tracker, cast("Outcomes", self), self._look)

    async def _look(self) -> None:
        self.looks.append(asyncio.get_running_loop().time())

    def queue(self, begin_by: float) -> Entry:
        """Return a task that the broker has."""
        number = self.tracker.next_sequence()
        entry = Entry(number, number, f"i:{number}", str(number), "x.py", "c", "j", 0.0, begin_by=begin_by)
        self.tracker.add(entry)
        self.tracker.outbox.clear()
        self.tracker.accepted([entry])
        self.watch.add(entry)
        return entry


def test_tasks_that_go_on_expiring_do_not_put_off_the_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """One each tenth of a second: the first look comes a fifth of a second after the first."""

    async def expire() -> list[float]:
        watched = _Watched()
        for number in range(1, 20):
            watched.queue(number / 10)
        async with asyncio.TaskGroup() as group:
            run = group.create_task(watched.watch.run())
            await asyncio.sleep(1.95)
            run.cancel()
        return watched.looks

    looks = virtual_time.run(expire, monkeypatch)
    assert looks[0] == pytest.approx(0.3)
    assert len(looks) >= 4


async def test_tasks_that_ended_before_their_time_take_no_memory() -> None:
    """Their results and arguments are freed at once, and their moments now and then."""
    watched = _Watched()
    ended: list[weakref.ref[Entry]] = []
    for _ in range(3000):
        entry = watched.queue(1e9)
        watched.tracker.resolve(entry, replace(cancelled_result(entry, ""), value="v"))
        watched.tracker.claim(entry)
        ended.append(weakref.ref(entry))
    del entry
    gc.collect()
    assert [ref() for ref in ended if ref() is not None] == []
    assert len(watched.watch) < 1100
