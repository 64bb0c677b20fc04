"""Tasks that wait for others, in a session against an agent that does what the test says."""

from __future__ import annotations

import asyncio
import gc
import sys
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from batchflow.errors import (
    ConfigurationError,
    DependencyFailed,
    InvalidDependency,
    SessionClosed,
    SubmitFailed,
    TaskCancelled,
    TaskNotFound,
    TasksLeftWaiting,
)
from batchflow.model import Counts, Result, Status
from batchflow.pool import Pool
from batchflow.protocol.values.encoding import Decoder
from batchflow.session import Session
from batchflow.task import Task
from node_agent.child.task_values import open_arguments
from tests.support.agent import Agent, failure_of
from tests.support.services import Doubles
from tests.support.session_parts import parts_of
from tests.support.waiting import eventually, within


def add(left: int, right: int = 0) -> int:
    return left + right


async def test_a_task_begins_when_its_inputs_have_succeeded_and_gets_their_values(
    session: Session, agent: Agent
) -> None:
    """It waits in the session: the broker does not have it before."""
    first, second = await session.submit("x.py", 1), await session.submit("x.py", 2)
    total = await session.submit("x.py", [first, second], task_id="total")
    assert total.status is Status.WAITING
    assert session.counts == Counts(waiting=1, sending=session.counts.sending, queued=session.counts.queued)
    items = await agent.take(2)
    await agent.answer(items[1], value=20)
    assert await within(second) == 20
    assert total.status is Status.WAITING
    await agent.answer(items[0], value=10)
    (item,) = await agent.take()
    assert (item.params, item.task_id) == ([[10, 20]], "total")
    await agent.answer(item, value=30)
    assert await within(total) == 30
    assert (await total.outcome()).args == [[10, 20]]
    assert session.counts == Counts(succeeded=3)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (lambda task: [task], ["v"]),
        (lambda task: ["a", [1, [task]], {"k": {"l": task}}], ["a", [1, ["v"]], {"k": {"l": "v"}}]),
        (lambda task: [(1, task)], [(1, "v")]),
        (lambda task: [{"a", task}], [{"a", "v"}]),
        (lambda task: [task, task], ["v", "v"]),
        (lambda task: [{"$input": 0}, task], [{"$input": 0}, "v"]),
        (lambda task: [OrderedDict(a=task)], [{"a": "v"}]),
    ],
)
async def test_tasks_are_found_anywhere_in_the_arguments(
    session: Session, agent: Agent, arguments: Callable[[Any], list[Any]], expected: list[Any]
) -> None:
    """In lists, tuples, dictionaries, sets, and what is pickled."""
    task = await session.submit("x.py")
    await session.submit("x.py", args=arguments(task))
    (item,) = await agent.take()
    await agent.answer(item, value="v")
    (item,) = await agent.take()
    params = item.params
    assert (params if isinstance(params, list) else open_arguments(params.data or b"")) == expected


async def test_values_keep_their_types(session: Session, agent: Agent) -> None:
    """A value that JSON does not hold is passed as it is."""
    from batchflow.protocol.fields import carried
    from batchflow.protocol.values.encoding import Encoder

    task = await session.submit("x.py")
    use = await session.submit("x.py", task, 1)
    (item,) = await agent.take()
    await agent.answer(item, value=carried(Encoder().encode((1, {2}, b"\0")).join()))
    (item,) = await agent.take()
    assert not isinstance(item.params, list)
    assert Decoder().decode(item.params.data or b"") == [(1, {2}, b"\0"), 1]
    await agent.answer(item, value="done")
    assert await within(use) == "done"


async def test_functions_maps_lists_and_programs_take_tasks(session: Session, agent: Agent) -> None:
    """As positionals, as keywords of a partial, as inputs."""
    one = await session.submit("x.py")
    await session.submit(partial(add, right=one), one)  # type: ignore[arg-type]
    await session.submit_many("x.py", [one, [one, 2]])
    await session.submit("run.sh", "-n", one)
    reading = asyncio.ensure_future(anext(session.map("x.py", iter([one]))))
    await eventually(lambda: session.counts.waiting == 5)
    (item,) = await agent.take()
    await agent.answer(item, value=1)
    items = await agent.take(5)
    assert [item.params for item in items] == [[1, {"right": 1}], [1], [1, 2], ["-n", 1], [1]]
    await agent.answer(*items, value="v")
    assert (await within(reading)).value == "v"


async def test_a_task_may_be_submitted_after_its_inputs_have_ended(session: Session, agent: Agent) -> None:
    """It is sent at once, also when the value was read long ago."""
    task = await session.submit("x.py")
    await agent.answer(*await agent.take(), value=5)
    assert await within(task) == 5
    later = await session.submit("x.py", task, after=task)
    assert later.status is Status.SENDING
    assert (await agent.take())[0].params == [5]


async def test_after_orders_tasks_without_passing_values(session: Session, agent: Agent) -> None:
    """One task, a list, or an iterator, which `submit_many` uses for each input."""
    first = await session.submit("x.py", "plain text")
    await session.submit("x.py", "a b", after=first)
    await session.submit_many("x.py", [1, 2], after=iter([first]))
    assert session.counts.waiting == 3
    await agent.answer(*await agent.take(), value=5)
    assert [item.params for item in await agent.take(3)] == [["a", "b"], [1], [2]]


async def test_arguments_are_taken_as_they_are_at_the_submit(session: Session, agent: Agent) -> None:
    """What the program does to its own objects afterwards changes nothing."""
    task = await session.submit("x.py")
    given: list[Any] = [1, task]
    await session.submit("x.py", given)
    given.append(2)
    await agent.answer(*await agent.take(), value="v")
    assert (await agent.take())[0].params == [[1, "v"]]


async def test_a_task_keeps_the_files_that_it_was_submitted_with(session: Session, agent: Agent) -> None:
    """Also when it is sent after the files have changed."""
    task = await session.submit("x.py")
    bundle = parts_of(session).submitter.bundle
    await session.submit("x.py", task)
    await session.update_files({"x.py": b"# another"})
    assert parts_of(session).submitter.bundle != bundle
    await agent.answer(*await agent.take(), value="v")
    assert (await agent.take())[0].bundle == bundle


# ---- failures


async def test_a_failure_is_said_once_and_followed(session: Session, agent: Agent) -> None:
    """All that wait for it end, and name the first that failed and what it said."""
    first = await session.submit("x.py", task_id="first")
    second = await session.submit("x.py", first, task_id="second")
    third = await session.submit("x.py", [second], task_id="third")
    (item,) = await agent.take()
    await agent.post([failure_of(item, "no such city")])
    for task in (second, third):
        with pytest.raises(DependencyFailed, match=r"task first \(x\.py\), which failed: no such city"):
            await within(task)
    result = await third.outcome()
    assert (result.status, result.kind) == (Status.FAILED, "DependencyFailed")
    assert result.args is not None
    assert [type(each) for each in result.args[0]] == [Task]
    assert session.counts == Counts(failed=3)
    late = await session.submit("x.py", third)
    with pytest.raises(DependencyFailed, match="task first"):
        await within(late)


async def test_a_failed_result_is_passed_where_that_is_wanted(session: Session, agent: Agent) -> None:
    """The `Result` itself, beside the values of those that succeeded."""
    good, bad = await session.submit_many("x.py", [1, 2])
    both = await session.submit("x.py", [good, bad], on_failure="pass")
    items = await agent.take(2)
    await agent.answer(items[0], value=7)
    await agent.post([failure_of(items[1], "no such city")])
    (item,) = await agent.take()
    assert not isinstance(item.params, list)
    ((value, failed),) = open_arguments(item.params.data or b"")
    assert value == 7
    assert isinstance(failed, Result)
    assert (failed.status, failed.error, failed.kind) == (Status.FAILED, "no such city", "TaskFailed")
    await agent.answer(item, value="done")
    assert await within(both) == "done"
    with pytest.raises(ConfigurationError, match="on_failure is 'ignore'"):
        await session.submit("x.py", on_failure="ignore")  # type: ignore[call-overload]


async def test_cancelling_a_task_cancels_what_waits_for_it_only(session: Session, agent: Agent) -> None:
    """Downward; its inputs go on. `inputs=True` takes those that no other task needs, too."""
    first, other = await session.submit_many("x.py", [1, 2])
    middle = await session.submit("x.py", first)
    last = await session.submit("x.py", middle)
    await middle.cancel()
    for task in (middle, last):
        with pytest.raises(TaskCancelled):
            await within(task)
    assert not first.done
    both = await session.submit("x.py", [first, other])
    await session.submit("x.py", other)
    await both.cancel(inputs=True)
    assert first.done or first.index in parts_of(session).cancellations.written
    assert not other.done
    assert other.index not in parts_of(session).cancellations.written
    await session.cancel_all()


async def test_what_cannot_be_sent_with_its_values_fails(session: Session, agent: Agent) -> None:
    """A program takes texts and numbers, which is known only now."""
    task = await session.submit("x.py")
    program = await session.submit("run.sh", task, 1)
    from batchflow.protocol.fields import carried
    from batchflow.protocol.values.encoding import Encoder

    (item,) = await agent.take()
    await agent.answer(item, value=carried(Encoder().encode(b"\0").join()))
    with pytest.raises(SubmitFailed, match="a program takes texts and numbers"):
        await within(program)


async def test_large_values_pass_through_a_blob(session: Session, agent: Agent) -> None:
    """What is too large for a message, when the values are in it."""
    task = await session.submit("x.py")
    use = await session.submit("x.py", task)
    (item,) = await agent.take()
    value = "x" * 200_000
    await agent.answer(item, value=await agent.store("blob", f'"{value}"'.encode()))
    (item,) = await agent.take()
    assert not isinstance(item.params, list)
    blob = await parts_of(session).context.runtime.ctl.get(item.params.blob)
    assert len(blob.data) == len(value) + 4
    await agent.answer(item, value="done")
    assert await within(use) == "done"


# ---- bad input


async def test_tasks_of_other_sessions_are_refused(pool: Pool, session: Session, agent: Agent) -> None:
    """Of another one, of a closed one; and what is no task."""
    async with pool.session("other") as other:
        foreign = await other.submit("x.py")
        with pytest.raises(InvalidDependency, match="session default/other: a task can wait"):
            await session.submit("x.py", [foreign])
        with pytest.raises(InvalidDependency, match="default/other"):
            await session.submit("x.py", after=[foreign])
    with pytest.raises(InvalidDependency, match="which is closed"):
        await session.submit("x.py", {1, foreign})
    for after in ("0", 5, [None]):
        with pytest.raises(InvalidDependency, match="after"):
            await session.submit("x.py", after=after)
    assert session.counts == Counts()


async def test_closing_reports_tasks_that_still_wait(pool: Pool, agent: Agent) -> None:
    """They never run; who awaits them is told."""
    session = await pool.session()
    last = await session.submit("x.py", await session.submit("x.py"))
    waiting = asyncio.ensure_future(last.outcome())
    await session.flush()
    with pytest.raises(TasksLeftWaiting, match="while 1 of its tasks waited for others"):
        await session.aclose()
    with pytest.raises(SessionClosed):
        await within(waiting)


async def test_after_its_stop_nothing_is_left_to_do(pool: Pool, agent: Agent) -> None:
    """What ends while the session closes is left to a later one. No loop waits for it."""
    async with pool.session("c") as session:
        a = await session.submit("x.py", task_id="a")
        await session.submit("x.py", a, task_id="b")
        await within(session.flush())
        dependents = parts_of(session).submitter.dependents
        dependents.stop()
        await agent.answer(*await agent.take())
        await within(a)
        assert not dependents.is_behind


async def test_an_error_that_leaves_tasks_waiting_arrives_itself(pool: Pool, agent: Agent) -> None:
    """What the closing says follows from it, and is a note of it."""

    async def leave() -> None:
        async with pool.session() as session:
            await session.submit("x.py", await session.submit("x.py"))
            raise LookupError

    with pytest.raises(LookupError) as caught:
        await leave()
    assert "waited for others" in caught.value.__notes__[0]


# ---- handles


async def test_a_task_is_found_by_its_label(session: Session, agent: Agent) -> None:
    """While it is under way, unread, or held; the newest of that label."""
    await session.submit("x.py", task_id="a")
    newest = await session.submit("x.py", task_id="a")
    assert session.task("a").index == newest.index
    assert (newest.task_id, newest.done) == ("a", False)
    unlabelled = (await session.submit("x.py")).index
    assert session.task("2").index == unlabelled
    await agent.answer(*await agent.take(3), value=1)
    await eventually(lambda: session.counts.done == 3)
    assert session.task("2").done
    assert await within(session.task("a")) == 1
    session.take()
    del newest
    for label in ("a", "2", "b"):
        with pytest.raises(TaskNotFound, match=label):
            session.task(label)


async def test_results_tell_each_task_once(session: Session, serving: Agent) -> None:
    """Inputs and what waits for them alike; the stream ends after the last."""
    first = await session.submit("x.py", 1)
    second = await session.submit("x.py", first)
    await session.submit("x.py", second)
    async with asyncio.timeout(20):
        assert [result.value async for result in session.results()] == [[1], [[1]], [[[1]]]]


async def test_many_tasks_that_wait_take_little_memory(pool: Pool, doubles: Doubles) -> None:
    """At most 2 KB each, handle included. What was written into the storage account is not the client's."""

    def written() -> int:
        return sum(len(each.data) for blobs in doubles.storage.content.values() for each in blobs.values())

    async with pool.session("many") as session:
        first = await session.submit("x.py", 1)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            tasks = [await session.submit("x.py", [first, number]) for number in range(2000)]
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (after - before - written()) / len(tasks) < 2048, sys.version
        await session.cancel_all()
        assert session.counts.cancelled >= 2000
