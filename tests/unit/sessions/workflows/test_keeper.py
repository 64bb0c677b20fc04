"""What waits outlives its client: closed or killed, and opened again by its name."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from batchflow.errors import TasksLeftWaiting
from batchflow.model import Counts, Result, Status
from batchflow.pool import Pool
from batchflow.protocol.documents import Cancellation
from batchflow.protocol.layout import cancellation_blob, waiting_prefix
from batchflow.protocol.wire import TaskItem, make_uid, split_uid
from batchflow.session import Session
from batchflow.sessions.workflows.keeper import WorkflowKeeper
from tests.support.agent import Agent, failure_of, result_of
from tests.support.crash import die
from tests.support.services import Doubles
from tests.support.session_parts import parts_of
from tests.support.waiting import eventually, within


async def read(session: Session, number: int) -> list[Result]:
    stream = session.results(follow=True)
    return [await within(anext(stream)) for _ in range(number)]


async def rest(session: Session) -> list[tuple[str, Any]]:
    async with asyncio.timeout(20):
        return [(result.task_id, result.value) async for result in session.results()]


async def documents(session: Session) -> list[str]:
    ctl, prefix = parts_of(session).context.runtime.ctl, waiting_prefix(session.job_name, session.name)
    return [info.name async for info in ctl.list(prefix)]


async def is_cancelled(session: Session, uid: str) -> bool:
    """Whether agents do not run a task."""
    ctl = parts_of(session).context.runtime.ctl
    blob = await ctl.get(cancellation_blob(session.job_name, session.name))
    return Cancellation.decode(blob.data).covers(*split_uid(uid))


async def take(agent: Agent, number: int = 1) -> dict[str, TaskItem]:
    return {item.task_id: item for item in await agent.take(number)}


async def test_a_closed_session_leaves_what_waits_to_the_next(pool: Pool, agent: Agent) -> None:
    """It goes on under the same uid, with its label, files and arguments; each task is shown once."""
    async with pool.session("c") as first:
        a = await first.submit("x.py", "plain", task_id="a")
        b = await first.submit("x.py", [a, 1], task_id="b", tag="t", timeout=5.0)
        await first.submit("x.py", 7, b, task_id="c", after=a)
        await first.submit("x.py", task_id="d")
        items = await take(agent, 2)
        assert first.counts.waiting == 2
    async with pool.session("c") as second:
        await eventually(lambda: second.counts == Counts(waiting=2, queued=2))
        await agent.answer(items["a"], value="v")
        await agent.answer(items["d"], value="d")
        (item,) = await agent.take()
        assert (item.task_id, item.params, item.tag, item.timeout) == ("b", [["v", 1]], "t", 5.0)
        assert item.uid.startswith(first.incarnation)
        assert second.task("c").status.value == "waiting"
        await agent.answer(item, value="w")
        (item,) = await agent.take()
        assert item.params == [7, "w"]
        await agent.answer(item, value="x")
        assert sorted(await rest(second)) == [("a", "v"), ("b", "w"), ("c", "x"), ("d", "d")]
    async with pool.session("c") as third:
        assert await rest(third) == []
        assert await documents(third) == []


async def test_a_killed_session_keeps_the_results_that_are_needed(
    pool: Pool, agent: Agent, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was shown is not shown again, and its value is still there for what waits."""
    first = await pool.session("c")
    a = await first.submit("x.py", task_id="a")
    b = await first.submit("x.py", task_id="b")
    await first.submit("x.py", [a, b], task_id="sum")
    items = await take(agent, 2)
    await agent.answer(items["a"], value=5)
    assert [result.value for result in await read(first, 1)] == [5]
    await within(first.flush())
    await die(first, doubles, monkeypatch)
    async with pool.session("c") as second:
        await agent.answer(items["b"], value=6)
        (item,) = await agent.take()
        assert (item.task_id, item.params) == ("sum", [[5, 6]])
        await agent.answer(item, value=11)
        assert await rest(second) == [("b", 6), ("sum", 11)]


async def test_what_waited_itself_and_was_shown_is_still_passed_on(pool: Pool, agent: Agent) -> None:
    """Also when it stands in one document with the task that takes it."""
    async with pool.session("c") as first:
        a, late = await first.submit("x.py", task_id="a"), await first.submit("x.py", task_id="late")
        b = await first.submit("x.py", task_id="b", after=a)
        await first.submit("x.py", b, late, task_id="both")
        await within(first.flush())
        items = await take(agent, 2)
        await agent.answer(items["a"], value=1)
        await agent.answer(*await agent.take(), value=2)
        assert [result.value for result in await read(first, 2)] == [1, 2]
    async with pool.session("c") as second:
        await agent.answer(items["late"], value=3)
        (item,) = await agent.take()
        assert item.params == [2, 3]
        await agent.answer(item, value=4)
        assert await rest(second) == [("late", 3), ("both", 4)]


async def test_values_that_were_there_before_are_written_down(pool: Pool, agent: Agent) -> None:
    """Their messages are gone when the task is submitted."""
    async with pool.session("c") as first:
        a = await first.submit("x.py", task_id="a")
        await agent.answer(*await agent.take(), value={"k": 1})
        await within(a)
        await within(first.flush())
        b = await first.submit("x.py", task_id="b")
        await first.submit("x.py", a, b, task_id="both")
        items = await take(agent)
    async with pool.session("c") as second:
        await agent.answer(items["b"], value=2)
        (item,) = await agent.take()
        assert item.params == [{"k": 1}, 2]
        await agent.answer(item, value=3)
        assert await rest(second) == [("b", 2), ("both", 3)]


async def test_a_failure_is_followed_in_the_next_session(pool: Pool, agent: Agent) -> None:
    """Once, with what the first one said."""
    async with pool.session("c") as first:
        a = await first.submit("x.py", task_id="a")
        await first.submit("x.py", await first.submit("x.py", a, task_id="b"), task_id="c")
        items = await take(agent)
    async with pool.session("c") as second:
        await agent.post([failure_of(items["a"], "no such city")])
        results = await within(second.results().collect())
        assert {result.task_id: result.kind for result in results} == {
            "a": "TaskFailed",
            "b": "DependencyFailed",
            "c": "DependencyFailed",
        }
        assert "task a (x.py), which failed: no such city" in str(results[-1].error)
    async with pool.session("c") as third:
        assert await rest(third) == []


async def test_an_unread_cancellation_of_what_waits_is_told_by_the_next_session(
    pool: Pool, agent: Agent
) -> None:
    """Once. The next session sends the task, and the document tells agents that it was cancelled."""
    async with pool.session("c") as first:
        a = await first.submit("x.py", task_id="a")
        b = await first.submit("x.py", a, task_id="b")
        await first.submit("x.py", b, task_id="c")
        await within(first.flush())
        await within(b.cancel())
        assert await is_cancelled(first, make_uid(first.incarnation, 1))
        items = await take(agent)
    async with pool.session("c") as second:
        await agent.answer(items["a"], value=1)
        (item,) = await agent.take()
        assert (item.task_id, await is_cancelled(second, item.uid)) == ("b", True)
        await agent.post([result_of(item, status=Status.CANCELLED, error="refused", kind="TaskCancelled")])
        kinds = {result.task_id: result.kind for result in await within(second.results().collect())}
        assert kinds == {"a": None, "b": "TaskCancelled", "c": "TaskCancelled"}
    async with pool.session("c") as third:
        assert await rest(third) == []


async def test_a_cancellation_of_what_waits_is_shown_once(pool: Pool, agent: Agent) -> None:
    """What a session has shown, the next one neither sends nor shows."""
    async with pool.session("c") as first:
        a = await first.submit("x.py", task_id="a")
        b = await first.submit("x.py", a, task_id="b")
        await within(first.flush())
        await within(b.cancel())
        assert [result.kind for result in await read(first, 1)] == ["TaskCancelled"]
        items = await take(agent)
    async with pool.session("c") as second:
        await agent.answer(items["a"], value=1)
        assert await rest(second) == [("a", 1)]


async def test_an_unread_expiry_of_what_waits_is_told_by_the_next_session(pool: Pool, agent: Agent) -> None:
    """So is every outcome that a session gives a task by itself."""
    async with pool.session("c") as first:
        a = await first.submit("x.py", task_id="a")
        late = await first.submit("x.py", a, task_id="late", expires=0.2)
        await within(first.flush())
        await eventually(lambda: late.done)
        items = await take(agent)
    async with pool.session("c") as second:
        await agent.answer(items["a"], value=1)
        kinds = {result.task_id: result.kind for result in await within(second.results().collect())}
        assert kinds == {"a": None, "late": "TaskExpired"}


async def test_what_cannot_be_written_down_is_told(
    pool: Pool, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a session without a name."""

    async def nothing(_: object) -> None: ...

    monkeypatch.setattr(WorkflowKeeper, "write", nothing)
    session = await pool.session("c")
    await session.submit("x.py", await session.submit("x.py"))
    with pytest.raises(TasksLeftWaiting):
        await session.aclose()


@pytest.mark.parametrize("seed", range(5))
async def test_a_graph_survives_kills_at_any_moment(
    pool: Pool, agent: Agent, doubles: Doubles, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Every outcome exactly once, a repeated one marked; every task after its inputs, with their values."""
    chance = random.Random(seed)
    inputs = {
        number: chance.sample(range(number), min(number, chance.choice((0, 1, 2, 2)))) for number in range(12)
    }
    expected: dict[int, int] = {}
    for number, needed in inputs.items():
        expected[number] = number + sum(expected[each] for each in needed)
    session = await pool.session("c")
    tasks: list[Any] = []
    for number, needed in inputs.items():
        values = [tasks[each] for each in needed]
        tasks.append(await session.submit("x.py", args=[number, *values], task_id=str(number)))
    await within(session.flush())
    shown: list[Result] = []
    kills = 3
    running: list[TaskItem] = []
    while len({result.task_id for result in shown}) < len(inputs):
        running += await agent.take_message(0.02)
        chance.shuffle(running)
        if running and chance.random() < 0.7:
            item = running.pop()
            assert isinstance(item.params, list)
            number = item.params[0]
            assert sorted(item.params[1:]) == sorted(expected[each] for each in inputs[number])
            await agent.answer(item, value=sum(item.params))
        await asyncio.sleep(0)
        if chance.random() < 0.5:
            shown += session.take()
        if kills and chance.random() < 0.15:
            kills -= 1
            await die(session, doubles, monkeypatch)
            session = await within(opened(pool))
    await session.aclose()
    fresh = [result for result in shown if not result.repeated]
    assert len(fresh) == len({result.task_id for result in fresh})
    assert {int(result.task_id): result.value for result in shown} == expected


async def opened(pool: Pool) -> Session:
    return await pool.session("c")
