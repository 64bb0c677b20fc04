"""Large values go from task to task without moving through the client."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from batchflow.errors import StorageError, TaskFailed
from batchflow.model import Status, StoredArgument
from batchflow.pool import Pool
from batchflow.protocol.wire import Reference, TaskItem
from batchflow.session import Session
from batchflow.sessions.records.blob_uses import BlobUses
from node_agent.bundles.values import StoredValue
from node_agent.child.__main__ import content_of
from node_agent.child.task_values import open_arguments
from tests.support.agent import Agent
from tests.support.services import Doubles
from tests.support.session_parts import parts_of
from tests.support.waiting import eventually, within

LARGE = b'"' + b"v" * 200_000 + b'"'


@pytest.fixture
async def values_agent(session: Session, agent: Agent) -> Agent:
    """An agent that fetches values, and that the session has seen."""
    await agent.beat(accepts=("values",))
    await parts_of(session).agents.meet()
    return agent


async def passed(agent: Agent, item: TaskItem, storage: Any) -> list[Any]:
    """Return the arguments of a task as its agent opens them."""
    assert item.inputs is not None
    assert isinstance(item.params, Reference)
    files = [StoredValue(await storage.get_signed(place["blob"], place["sig"])) for place in item.inputs]
    return open_arguments(item.params.data or b"", [file.path for file in files], read=content_of)


def fetched(doubles: Doubles) -> list[str]:
    return [name for what, name in doubles.storage.calls if what == "get" and name.startswith("results/")]


async def stored(session: Session) -> list[str]:
    return [info.name async for info in parts_of(session).context.runtime.out.list("results/")]


async def test_a_large_value_goes_by_reference_and_is_fetched_when_it_is_asked_for(
    session: Session, values_agent: Agent, doubles: Doubles
) -> None:
    """Its blob stays until the last consumer has ended, and its result was read."""
    first = await session.submit("x.py", task_id="first")
    use = await session.submit("x.py", [first, 1], first)
    other = await session.submit("x.py", {"k": first})
    (item,) = await values_agent.take()
    await values_agent.answer(item, value=await values_agent.store("results/a", LARGE))
    one, two = await values_agent.take(2)
    out = parts_of(session).context.runtime.out
    assert await passed(values_agent, one, out) == [["v" * 200_000, 1], "v" * 200_000]
    assert await passed(values_agent, two, out) == [{"k": "v" * 200_000}]
    await values_agent.answer(one, value="done")
    assert await within(use) == "done"
    assert fetched(doubles) == []
    shown = (await use.outcome()).args
    assert shown is not None
    assert isinstance(shown[1], StoredArgument)
    assert shown[1].size == len(LARGE)
    assert await within(first) == "v" * 200_000
    assert fetched(doubles) == ["results/a"]
    assert await stored(session) == ["results/a"]
    await values_agent.answer(two, value="done")
    assert await within(other) == "done"
    assert await within(first) == "v" * 200_000
    assert await within(shown[1].fetch()) == "v" * 200_000
    await eventually(lambda: not len(parts_of(session).receiver.values.uses))
    await session.aclose()
    assert await stored(session) == []


async def test_results_yields_values_that_were_passed_on(
    session: Session, values_agent: Agent, doubles: Doubles
) -> None:
    """Each once, with its value, which is fetched for it."""
    first = await session.submit("x.py", task_id="first")
    await session.submit("x.py", first, task_id="use")
    (item,) = await values_agent.take()
    await values_agent.answer(item, value=await values_agent.store("results/a", LARGE))
    (use,) = await values_agent.take()
    await values_agent.answer(use, value=2)
    found = {result.task_id: result.value async for result in session.results()}
    assert found == {"first": "v" * 200_000, "use": 2}
    assert session.take() == []


async def test_a_reader_has_few_values_fetched_ahead(session: Session, values_agent: Agent) -> None:
    """Each takes memory until it is read, so that those far behind the first stay in their blobs."""
    tasks = await session.submit_many("x.py", range(20))
    await session.submit("x.py", tasks)
    items = await values_agent.take(20)
    for item in items:
        await values_agent.answer(item, value=await values_agent.store(f"results/{item.task_id}", b"[3]"))
    await eventually(lambda: all(task.done for task in tasks))
    asked: list[Any] = []
    parts_of(session).outcomes.bring = asked.append
    for _ in range(3):
        assert session.take() == []
    assert len(asked) == 8


async def test_a_value_that_is_gone_is_a_failure_of_the_call_that_asks_for_it(
    session: Session, values_agent: Agent
) -> None:
    """The counts follow."""
    first = await session.submit("x.py")
    await session.submit("x.py", first)
    (item,) = await values_agent.take()
    await values_agent.answer(item, value=Reference("results/none", 5))
    await values_agent.take()
    assert first.status is Status.SUCCEEDED
    with pytest.raises(TaskFailed, match="cannot be fetched"):
        await within(first)
    assert (first.status, session.counts.failed) == (Status.FAILED, 1)


async def test_programs_old_agents_and_failures_get_values_through_the_client(
    session: Session, values_agent: Agent, doubles: Doubles
) -> None:
    """A program takes words, and agents of earlier versions fetch no values."""
    first = await session.submit("x.py")
    await session.submit("run.sh", first)
    (item,) = await values_agent.take()
    await values_agent.answer(item, value=await values_agent.store("results/a", b"[1,2]"))
    (item,) = await values_agent.take()
    assert (item.inputs, item.params) == (None, [[1, 2]])
    await values_agent.beat()
    await parts_of(session).agents.meet()
    second = await session.submit("x.py")
    await session.submit("x.py", second)
    (item,) = await values_agent.take()
    await values_agent.answer(item, value=await values_agent.store("results/b", b"[3]"))
    (item,) = await values_agent.take()
    assert (item.inputs, item.params) == (None, [[3]])
    assert fetched(doubles) == ["results/a", "results/b"]


async def test_a_client_that_cannot_sign_copies(
    session: Session, values_agent: Agent, doubles: Doubles
) -> None:
    """It says so once."""

    async def refuse(container: str, name: str, valid: float) -> str:
        raise StorageError("no right to sign")

    doubles.storage.blob_signature = refuse  # type: ignore[method-assign]
    first = await session.submit("x.py")
    await session.submit("x.py", first)
    (item,) = await values_agent.take()
    await values_agent.answer(item, value=await values_agent.store("results/a", b"[3]"))
    (item,) = await values_agent.take()
    assert (item.inputs, item.params) == (None, [[3]])


async def test_closing_sends_a_task_whose_value_is_on_its_way_through_the_client(
    pool: Pool, agent: Agent, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ready when the closing begins, and the value comes after that."""
    session = await pool.session()
    out, asked, gate = parts_of(session).context.runtime.out, asyncio.Event(), asyncio.Event()
    get = out.get

    async def wait(name: str, **options: Any) -> Any:
        if name.startswith("results/"):
            asked.set()
            await gate.wait()
        return await get(name, **options)

    monkeypatch.setattr(out, "get", wait)
    first = await session.submit("x.py")
    await session.submit("x.py", first)
    (item,) = await agent.take()
    await agent.answer(item, value=await agent.store("results/a", b"[3]"))
    await within(asked.wait())
    closing = asyncio.ensure_future(session.aclose())
    await eventually(lambda: session.closed)
    await asyncio.sleep(0)
    gate.set()
    await within(closing)
    assert [item.params for item in await agent.take()] == [[[3]]]


async def test_a_later_session_passes_on_what_an_earlier_one_was_to(
    pool: Pool, values_agent: Agent, doubles: Doubles
) -> None:
    """The value's message stayed in the mailbox."""
    named = await pool.session("nightly")
    await parts_of(named).agents.meet()
    first, gate = await named.submit("x.py", task_id="first"), await named.submit("x.py", task_id="gate")
    await named.submit("x.py", first, after=gate, task_id="use")
    items = {item.task_id: item for item in await values_agent.take(2)}
    reference = await values_agent.store("results/a", LARGE)
    await values_agent.answer(items["first"], value=reference)
    await eventually(lambda: first.done)
    await within(named.aclose())
    async with pool.session("nightly") as later:
        await parts_of(later).agents.meet()
        await values_agent.answer(items["gate"], value=1)
        (use,) = await values_agent.take()
        await values_agent.answer(use, value=3)
        names = sorted([result.task_id async for result in later.results()])
    assert names == ["first", "gate", "use"]


def test_a_blob_stays_until_nothing_needs_it() -> None:
    """Whatever comes last: the end of its message, or of what needs it."""
    deleted: list[str] = []
    uses = BlobUses(deleted.append)
    uses.consumed("alone")
    assert deleted == ["alone"]
    uses.need("a", 1)
    uses.need("a", "two")
    uses.need("b", 1)
    uses.consumed("a")
    uses.free(1)
    assert (deleted, uses.needs("a", "two"), len(uses)) == (["alone"], True, 1)
    uses.consumed("b")
    uses.free_each(str)
    uses.free("two")
    assert (deleted, len(uses)) == (["alone", "b", "a"], 0)
