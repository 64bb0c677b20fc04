"""A session against an in-memory broker and an agent that does what the test says."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from batchflow.client import Client
from batchflow.errors import (
    ArgumentNotSerializable,
    BrokerError,
    ConfigurationError,
    MessageTooLarge,
    ResultNotSerializable,
    StorageError,
    SubmitFailed,
    TaskFailed,
)
from batchflow.model import Counts, Status
from batchflow.pool import Pool
from batchflow.protocol import wire
from batchflow.protocol.fields import to_base64
from batchflow.protocol.values.encoding import Decoder, Encoder
from batchflow.session import Session
from tests.support.agent import Agent, failure_of, result_of
from tests.support.services import Doubles, until_empty
from tests.support.session_parts import parts_of
from tests.support.waiting import eventually, within

# ---- submitting


def _generator() -> Iterator[int]:
    yield 1


class _Own:
    """A class of a module that no node has."""


async def test_a_task_goes_out_and_its_value_comes_back(session: Session, agent: Agent) -> None:
    """The shortest road: submit, await, value; the original's five names are on the wire."""
    task = await session.submit("x.py", "java -Xmx64m -jar pi.jar 100")
    (item,) = await agent.take()
    assert item.params == ["java", "-Xmx64m", "-jar", "pi.jar", "100"]
    assert (item.client, item.job, item.task_id, item.command) == ("client_1", "default", "0", "x.py")
    assert item.bundle == parts_of(session).context.runtime.manifest.bundle
    await agent.answer(item, value=["3.2"])
    assert await within(task) == ["3.2"]
    assert await within(task) == ["3.2"]
    assert (await task.outcome()).node == "host-1"
    assert session.counts == Counts(succeeded=1)


async def test_a_report_is_written_while_the_session_is_open_and_afterwards(
    pool: Pool, agent: Agent, tmp_path: Path
) -> None:
    async with pool.session("client_1") as session:
        task = await session.submit("x.py")
        (item,) = await agent.take()
        await agent.answer(item, value=1)
        await within(task)
        written = session.report(tmp_path / "run.html")
        assert "1 succeeded" in written.read_text()
    assert "x.py" in session.report(written).read_text()
    with pytest.raises(OSError, match="nowhere"):
        session.report(tmp_path / "nowhere" / "run.html")


async def test_sessions_share_processes_when_they_or_their_pool_say_so(pool: Pool, agent: Agent) -> None:
    """The session's word counts before its pool's; without either they do not."""
    sharing = replace(pool.runtime.manifest, share_processes=True)
    for manifest, said, expected in [
        (pool.runtime.manifest, None, False),
        (pool.runtime.manifest, True, True),
        (sharing, None, True),
        (sharing, False, False),
    ]:
        pool.runtime.manifest = manifest
        async with pool.session(share_processes=said) as session:
            task = await session.submit("x.py")
            (item,) = await agent.take()
            assert item.share_processes is expected
            await agent.answer(item, value=1)
            assert await within(task) == 1


@pytest.mark.parametrize(
    ("params", "options", "arguments"),
    [
        ((), {}, []),
        (("",), {}, []),
        (("a b",), {}, ["a", "b"]),
        (("a 'b c'",), {}, ["a", "b c"]),
        (("a b", "c d"), {}, ["a b", "c d"]),
        ((5,), {}, [5]),
        ((None,), {}, [None]),
        (([1, 2],), {}, [[1, 2]]),
        ((), {"args": "a b"}, ["a b"]),
        ((), {"args": [1, "a b"]}, [1, "a b"]),
        ((), {"args": (1, 2)}, [1, 2]),
        ((), {"args": {"k": 1}}, [{"k": 1}]),
        ((), {"args": None}, [None]),
        ((), {"args": []}, []),
    ],
)
async def test_how_arguments_reach_the_task(
    session: Session, agent: Agent, params: tuple[Any, ...], options: dict[str, Any], arguments: list[Any]
) -> None:
    """A lone string is a command line; everything else is what it is."""
    await session.submit("x.py", *params, **options)
    assert (await agent.take())[0].params == arguments


async def test_inputs_are_never_split(session: Session, agent: Agent) -> None:
    """Of `submit_many`: a list or tuple is the arguments, anything else the one argument."""
    tasks = await session.submit_many("x.py", ["a b", [1, 2], (3,), {"k": "v w"}, None], tag="t")
    items = await agent.take(5)
    assert [item.params for item in items] == [["a b"], [1, 2], [3], [{"k": "v w"}], [None]]
    assert [task.index for task in tasks] == [0, 1, 2, 3, 4]
    assert {item.tag for item in items} == {"t"}


async def test_a_failure_is_raised_where_it_is_awaited(session: Session, agent: Agent) -> None:
    """`await task` raises, `outcome()` gives it as a value."""
    task = await session.submit("x.py")
    (item,) = await agent.take()
    await agent.post([failure_of(item, "no such thing")])
    with pytest.raises(TaskFailed, match="no such thing"):
        await within(task)
    outcome = await task.outcome()
    assert (outcome.status, outcome.error) == (Status.FAILED, "no such thing")
    with pytest.raises(TaskFailed):
        await within(asyncio.ensure_future(task))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ((("x.py", "a 'b"), {}), "cannot be split"),
        ((("x.py", "a"), {"args": 1}), "not both"),
        ((("x.py",), {"args": object()}), r"x.py: args\[0\] is of type object"),
        ((("x.py",), {"args": [1, {"surface": [1, 2, 3, _generator()]}]}), r'args\[1\]\["surface"\]\[3\]'),
        ((("x.py",), {"args": ["x" * 200_000, object()]}), r"args\[1\] is of type object"),
        ((("x.py",), {"args": [_Own()]}), "args.*class _Own of .* not in the session's files"),
        ((("x.jar",), {"args": [1, b"x"]}), r"args\[1\] is of type bytes.*a program takes texts"),
        ((("x.py",), {"tag": {1, 2}}), "JSON"),
        ((("x.py",), {"tag": {"a": float("nan")}}), "JSON"),
        ((("x.py",), {"timeout": 0}), "timeout"),
        ((("x.py",), {"timeout": -1.0}), "timeout"),
        ((("x.py",), {"timeout": float("nan")}), "timeout"),
        ((("x.py",), {"timeout": "5"}), "timeout"),
        ((("x.py",), {"memory_limit": 0}), "memory_limit"),
        ((("x.py",), {"memory_limit": 1.5}), "memory_limit"),
        ((("",), {}), "command"),
        (((5,), {}), "command"),
        (((None,), {}), "command"),
        ((("x.py",), {"retry": 3}), "retry"),
    ],
)
async def test_unsendable_submission_is_refused_at_once(
    session: Session, call: tuple[tuple[Any, ...], dict[str, Any]], words: str
) -> None:
    """In words that name it; nothing is submitted and nothing left in storage."""
    params, options = call
    with pytest.raises(ConfigurationError, match=words):
        await session.submit(*params, **options)
    assert session.counts == Counts()


@pytest.mark.parametrize(
    "arguments",
    [
        [math.nan],
        [None, math.inf],
        [2**70],
        ["\ud800"],
        [{1: 2}],
        [{"x": -math.inf}],
        [(1, 2)],
        [b"x" * 200_000],
        [[math.nan] * 20_000],
    ],
    ids=["nan", "inf", "int", "surrogate", "int key", "nested", "tuple", "large bytes", "large list"],
)
async def test_arguments_arrive_as_what_they_are(
    session: Session, agent: Agent, arguments: list[Any]
) -> None:
    """Nothing turns into None, nor into another type."""
    await session.submit("x.py", args=arguments)
    (item,) = await agent.take()
    assert isinstance(item.params, wire.Reference)
    data = item.params.data
    if data is None:
        data = (await parts_of(session).context.runtime.ctl.get(item.params.blob)).data
    assert item.params.size == len(data)
    assert repr(Decoder().decode(data)) == repr(arguments)


@pytest.mark.parametrize(
    "bad", [object(), _generator(), [{"a": lambda: 1}]], ids=["object", "generator", "deep"]
)
async def test_a_list_of_inputs_goes_whole_or_not_at_all(session: Session, agent: Agent, bad: Any) -> None:
    """The error names the input."""
    with pytest.raises(ArgumentNotSerializable, match=r"x.py: inputs\[2\]: args\[0\]"):
        await session.submit_many("x.py", [1, {1, 2}, bad])
    assert session.counts == Counts()
    tasks = await session.submit_many("x.py", [1, math.nan, {1, 2}])
    assert [task.index for task in tasks] == [0, 1, 2]
    assert [type(item.params) for item in await agent.take(3)] == [list, wire.Reference, wire.Reference]


async def test_a_program_gets_words(session: Session, agent: Agent) -> None:
    """The nearest text of a number or a path, because it has no other types."""
    given = [math.nan, 1.5, Path("/a"), Decimal("1.10"), (1, {2}), 2**70]
    await session.submit("run.sh", args=given)
    (item,) = await agent.take()
    assert item.params == ["nan", 1.5, "/a", "1.10", [1, [2]], str(2**70)]


@pytest.mark.parametrize("value", [(1, 2), b"x", {1: math.nan}], ids=repr)
async def test_results_arrive_as_what_they_are(session: Session, agent: Agent, value: Any) -> None:
    """In the message, beside their nearest JSON or without it; spilled ones too."""
    tasks = [await session.submit("x.py") for _ in range(2)]
    container = Encoder().encode(value).join()
    first, second = await agent.take(2)
    await agent.answer(first, value=wire.carried(container))
    await agent.answer(second, value=["nearest"], encoded=to_base64(container))
    assert [repr(await within(task)) for task in tasks] == [repr(value)] * 2


async def test_a_value_that_cannot_be_read_is_a_failure_of_its_task(session: Session, agent: Agent) -> None:
    """Damaged, or a pickle that the session does not open."""
    tasks = [await session.submit("x.py") for _ in range(2)]
    container = Encoder().encode((1, 2)).join()
    pickled = Encoder(pickle=lambda value, add: b"cos\nsystem\n.").encode(lambda: 1).join()
    for item, data in zip(await agent.take(2), (container[:-1], pickled), strict=True):
        await agent.answer(item, value=wire.carried(data))
    for task, words in zip(tasks, ("container of", "pickle, which can execute code"), strict=True):
        with pytest.raises(ResultNotSerializable, match=words):
            await within(task)
    assert session.counts == Counts(failed=2)


# ---- acceptance, and what the broker refuses


async def test_accepted_and_flush_wait_for_the_broker(
    session: Session, agent: Agent, doubles: Doubles
) -> None:
    """A task is in the outbox at once, and accepted when the broker has it."""
    doubles.broker.gate.clear()
    tasks = [await session.submit("x.py", args=number) for number in range(3)]
    waiting = [asyncio.ensure_future(task.accepted()) for task in tasks]
    flush = asyncio.ensure_future(session.flush())
    await eventually(lambda: doubles.broker.tried)
    assert not any(each.done() for each in (*waiting, flush))
    assert session.counts == Counts(sending=3)
    doubles.broker.gate.set()
    await within(asyncio.gather(*waiting, flush))
    assert session.counts == Counts(queued=3)
    assert [task.status for task in tasks] == [Status.QUEUED] * 3
    await within(session.flush())
    await within(tasks[0].accepted())


async def test_flush_waits_for_nothing_that_was_submitted_later(session: Session, doubles: Doubles) -> None:
    """It is about the tasks submitted so far."""
    doubles.broker.gate.clear()
    doubles.broker.faults.extend([None, *[BrokerError("busy", retryable=True)] * 50])
    await session.submit("x.py")
    flush = asyncio.ensure_future(session.flush())
    await eventually(lambda: doubles.broker.tried)
    later = await session.submit("x.py")
    doubles.broker.gate.set()
    await within(flush)
    assert later.status is Status.SENDING
    doubles.broker.faults.clear()


async def test_retried_send_repeats_the_same_message(
    session: Session, agent: Agent, doubles: Doubles
) -> None:
    """Bytes and id are frozen at the first send, so that duplicate detection drops the second.

    The broker took the first one and the answer was lost: the agent sees one message.
    """
    doubles.broker.accepts_before_failing = True
    doubles.broker.faults.append(BrokerError("the connection broke", retryable=True))
    events = session.events()
    task = await session.submit("x.py", args=1)
    await within(task.accepted())
    first, second = doubles.broker.tried
    assert (first.body, first.message_id) == (second.body, second.message_id)
    assert len(await agent.take()) == 1
    assert await agent.take_message(0.05) == []
    warning = await within(anext(events))
    assert (warning.kind, "the connection broke" in warning.message) == ("warning", True)


async def test_messages_have_ids_of_their_own(session: Session, pool: Pool, doubles: Doubles) -> None:
    """Two sends are never taken for one, of one session or of two."""
    async with pool.session("client_2") as other:
        for each in (session, other, session):
            await (await each.submit("x.py")).accepted()
    assert len({message.message_id for message in doubles.broker.tried}) == 3


async def test_a_send_that_fails_for_good_is_the_tasks_outcome(session: Session, doubles: Doubles) -> None:
    """`SubmitFailed` with the broker's words, to each who waits; the session goes on."""
    doubles.broker.faults.append(MessageTooLarge("300 KB are too many"))
    task = await session.submit("x.py", task_id="big")
    for wait in (task.accepted, task.outcome):
        with suppress(SubmitFailed):
            await within(wait())
    with pytest.raises(SubmitFailed, match="300 KB"):
        await within(task.accepted())
    outcome = await task.outcome()
    assert (outcome.status, outcome.kind, outcome.task_id) == (Status.FAILED, "SubmitFailed", "big")
    await within(session.flush())
    await within((await session.submit("x.py")).accepted())
    assert session.counts == Counts(queued=1, failed=1)


async def test_accepted_does_not_tell_of_how_the_task_ended(session: Session, agent: Agent) -> None:
    """A task that the broker had is accepted, whatever became of it; even when its failure came first."""
    task = await session.submit("x.py")
    (item,) = await agent.take()
    await agent.post([failure_of(item)])
    await within(task.outcome())
    await within(task.accepted())


async def test_a_failure_that_comes_before_the_brokers_answer_proves_acceptance(
    session: Session, agent: Agent, doubles: Doubles
) -> None:
    """The agent was faster than the answer to the send."""
    doubles.broker.accepts_before_failing = True
    doubles.broker.faults.append(BrokerError("lost", retryable=True))
    task = await session.submit("x.py")
    accepted = asyncio.ensure_future(task.accepted())
    (item,) = await agent.take()
    await agent.post([failure_of(item)])
    await within(accepted)


async def test_a_full_outbox_waits_for_room_and_for_nothing_else(
    pool: Pool, doubles: Doubles, agent: Agent, connect: Callable[..., Client]
) -> None:
    """A submit that waits goes on when the broker has taken something; results need no reader."""
    async with connect(outbox=2) as client:
        session = await (await client.pool("demo")).session("small")
        doubles.broker.gate.clear()
        for _ in range(2):
            await within(session.submit("x.py"))
        third = asyncio.ensure_future(session.submit("x.py"))
        await eventually(lambda: doubles.broker.tried)
        assert not third.done()
        doubles.broker.gate.set()
        await within(third)
        tasks = await within(session.submit_many("x.py", range(20)))
        await agent.answer(*await agent.take(23))
        await within(tasks[-1])


async def test_an_outbox_is_full_of_few_large_tasks_too(
    pool: Pool, doubles: Doubles, connect: Callable[..., Client]
) -> None:
    """What waits is bounded by its bytes; sent or cancelled, it is no more counted."""
    async with connect(outbox_bytes=150_000) as client:
        session = await (await client.pool("demo")).session("small")
        doubles.broker.gate.clear()
        first = await session.submit("x.py", args="x" * 100_000)
        await eventually(lambda: doubles.broker.tried)
        second = await session.submit("x.py", args="x" * 100_000)
        await within(session.submit("x.py", args="x" * 100_000))
        waiting = asyncio.ensure_future(session.submit("x.py", args="x" * 100_000))
        await asyncio.sleep(0)
        assert not waiting.done()
        await within(second.cancel())
        await within(waiting)
        doubles.broker.gate.set()
        await within(session.flush())
        await within(first.accepted())
        assert parts_of(session).context.tracker.outbox_bytes == 0


async def test_a_full_outbox_has_room_when_its_tasks_are_cancelled(
    pool: Pool, doubles: Doubles, connect: Callable[..., Client]
) -> None:
    """Not only when something was sent."""
    async with connect(outbox=2) as client:
        session = await (await client.pool("demo")).session("small")
        doubles.broker.gate.clear()
        first = await session.submit("x.py")
        await eventually(lambda: doubles.broker.tried)
        second = await session.submit("x.py")
        third = asyncio.ensure_future(session.submit("x.py"))
        await asyncio.sleep(0)
        await within(second.cancel())
        await within(third)
        doubles.broker.gate.set()
        await within(first.accepted())


# ---- large things


async def test_large_arguments_travel_by_reference(session: Session, agent: Agent, doubles: Doubles) -> None:
    """Whether one of them is large or many of them are."""
    for arguments in (["x" * 200_000], ["y" * 4000] * 50, [list(range(50_000))], [("z" * 150_000,)]):
        task = await session.submit("x.py", args=arguments)
        (item,) = await agent.take()
        assert isinstance(item.params, wire.Reference)
        content = await parts_of(session).context.runtime.ctl.get(item.params.blob)
        assert len(content.data) == item.params.size
        assert Decoder().decode(content.data) == arguments
        await agent.answer(item, value="ok")
        await within(task)
    assert len(doubles.storage.names("args/")) == 4


async def test_large_arguments_are_kept_until_the_session_closes_and_those_of_failures_longer(
    pool: Pool, agent: Agent, doubles: Doubles
) -> None:
    """A result shows what was asked: small arguments themselves, and how to fetch large ones."""
    async with pool.session() as session:
        tasks = [await session.submit("x.py", args=[(n, "x" * 200_000), {"n": n}]) for n in range(2)]
        first, second = await agent.take(2)
        await agent.answer(first, value="ok")
        await agent.post([failure_of(second)])
        results = [await within(task.outcome()) for task in tasks]
        for number, result in enumerate(results):
            assert result.args is not None
            large, small = result.args
            assert (large.kind, large.size > 200_000, small) == ("tuple", True, {"n": number})
            assert await within(large.fetch()) == (number, "x" * 200_000)
    assert len(doubles.storage.names("args/")) == 1
    assert await within(results[1].args[0].fetch()) == (1, "x" * 200_000)  # type: ignore[index]


async def test_a_result_has_what_was_asked_though_the_program_changed_it_since(
    session: Session, agent: Agent
) -> None:
    """Of one argument, of several, of what JSON does not hold, and of nothing."""
    given: dict[str, Any] = {"n": 1}
    tasks = [
        await session.submit("x.py", args=given),
        await session.submit("x.py", "a b"),
        await session.submit("x.py", 1, (2, {3}), math.inf),
        await session.submit("x.py"),
    ]
    given["n"] = 2
    for item in await agent.take(4):
        await agent.answer(item)
    asked = [(await within(task.outcome())).args for task in tasks]
    assert asked == [[{"n": 1}], ["a", "b"], [1, (2, {3}), math.inf], []]


async def test_small_arguments_travel_with_the_task(session: Session, agent: Agent, doubles: Doubles) -> None:
    """No blob for them."""
    await session.submit("x.py", args=["x" * 100_000])
    assert isinstance((await agent.take())[0].params, list)
    assert doubles.storage.names("args/") == []


async def test_arguments_that_cannot_be_stored_are_told_at_once(session: Session, doubles: Doubles) -> None:
    """Nothing was submitted."""
    doubles.storage.faults["put", "args/"] = [StorageError("the account is read-only")]
    with pytest.raises(StorageError, match="read-only"):
        await session.submit("x.py", args="x" * 200_000)
    assert session.counts == Counts()


async def test_what_cannot_travel_by_reference_is_refused(session: Session, doubles: Doubles) -> None:
    """A tag of a megabyte, alone or beside large arguments; nothing is left in storage."""
    for arguments in ([1], ["x" * 200_000]):
        with pytest.raises(ConfigurationError, match="tag"):
            await session.submit("x.py", args=arguments, tag="t" * 1_000_000)
    assert doubles.storage.names("args/") == []


async def test_large_results_are_fetched_and_their_blobs_deleted(
    session: Session, agent: Agent, doubles: Doubles
) -> None:
    """The user sees the value; the blob goes after the message was completed."""
    task = await session.submit("x.py")
    (item,) = await agent.take()
    value = {"big": "v" * 50_000}
    reference = await agent.store("results/default/client_1/0-1-a.json", orjson.dumps(value))
    await agent.answer(item, value=reference)
    await eventually(lambda: session.counts.done)
    assert doubles.storage.names("results/")
    assert await within(task) == value
    await eventually(lambda: not doubles.storage.names("results/"))


@pytest.mark.parametrize(("content", "words"), [(None, "cannot be fetched"), (b"{", "not JSON")])
async def test_a_large_result_that_cannot_be_read_is_a_failure(
    session: Session, agent: Agent, content: bytes | None, words: str
) -> None:
    """Said so, not kept silent, and not waited for."""
    task = await session.submit("x.py")
    (item,) = await agent.take()
    if content is not None:
        await agent.store("results/x.json", content)
    await agent.answer(item, value=wire.Reference("results/x.json", 5))
    with pytest.raises(TaskFailed, match=words):
        await within(task)


async def test_a_large_result_is_fetched_again_when_storage_stumbles(
    session: Session, agent: Agent, doubles: Doubles
) -> None:
    """A failure that passes is no outcome."""
    doubles.storage.faults["get", "results/"] = [StorageError("busy", retryable=True)] * 2
    task = await session.submit("x.py")
    (item,) = await agent.take()
    await agent.answer(item, value=await agent.store("results/x.json", b"[1]"))
    assert await within(task) == [1]


# ---- duplicates and hostile results


async def test_the_first_outcome_wins(session: Session, agent: Agent, doubles: Doubles) -> None:
    """Later ones are dropped, their messages completed, their blobs deleted."""
    task = await session.submit("x.py")
    (item,) = await agent.take()
    await agent.answer(item, value="first")
    assert await within(task) == "first"
    await agent.answer(item, value="second")
    await agent.answer(item, value=await agent.store("results/again.json", b"3"))
    await agent.post([failure_of(item)])
    await eventually(lambda: not doubles.storage.names("results/"))
    await until_empty(session)
    assert await task == "first"
    assert session.take() == []
    assert session.counts == Counts(succeeded=1)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xff", b"{}", b"[]", b'{"v":2,"type":"results","items":[{}]}',
        b'{"v":1,"type":[],"items":[{}]}', b'{"v":1,"type":"results","items":[null]}',
        wire.join("results", [b'{"uid":"x"}']),
        wire.join("tasks", [wire.encode(wire.TaskItem("c", "j", "1", "x.py", [], "i:1", "b"))]),
    ],
)  # fmt: skip
async def test_undecodable_message_is_dropped_and_reported(
    session: Session, agent: Agent, body: bytes
) -> None:
    """It is dropped; what comes after it is read."""
    task = await session.submit("x.py")
    (item,) = await agent.take()
    await agent.post_bytes(body, "default/client_1")
    await agent.answer(item, value="fine")
    assert await within(task) == "fine"
    await until_empty(session)


async def test_a_result_with_odd_times_takes_nothing_down(session: Session, agent: Agent) -> None:
    """Clocks of nodes may say anything."""
    task = await session.submit("x.py")
    (item,) = await agent.take()
    await agent.answer(item, value=1, started_at=5e300, finished_at=-5e300)
    assert await within(task) == 1


async def test_a_result_for_a_task_that_was_never_submitted_is_dropped(
    session: Session, agent: Agent
) -> None:
    """Forged, or of a time before: it has no task."""
    task = await session.submit("x.py")
    (item,) = await agent.take()
    await agent.post([result_of(replace(item, uid=wire.make_uid(session.incarnation, 999)))])
    await agent.answer(item, value="mine")
    assert await within(task) == "mine"
    assert session.take() == []
    await until_empty(session)
