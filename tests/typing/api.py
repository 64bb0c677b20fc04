"""The public API as its users' type checkers see it. Checked, never run: see test_typing.py.

Where a line is wrong on purpose, it says which error each checker must give; one that gives none fails.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, assert_type

from batchflow import (
    Client,
    Counts,
    Engine,
    Event,
    Explanation,
    Image,
    Job,
    Node,
    Permanent,
    Pool,
    PoolSpec,
    Result,
    Results,
    ResultStream,
    Retry,
    RetryPolicy,
    Session,
    Settings,
    Status,
    Task,
    TaskError,
)
from batchflow.streams import EventStream


async def clients() -> None:
    async with Client.local(nodes=2, slots=4, latency=0.1) as client:
        assert_type(client, Client)
        assert_type(client.settings, Settings)
        assert_type(client.settings.to_toml(), str)
    client = await Client.from_config("batchflow.toml", profile="cheap")
    assert_type(client, Client)
    assert_type(client.pools(), AsyncIterator[Pool])
    await client.delete_pool("work")
    await client.aclose()
    Client.local(node=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Client.local(2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    async with client.pool("work"):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass


async def pools(client: Client) -> None:
    image = Image("canonical", "ubuntu-24_04-lts", "server")
    spec = PoolSpec("work", nodes=2, image=image, apt=("ffmpeg",), environment={"KEY": "value"})
    assert_type(await client.create_pool(spec), Pool)
    assert_type(await client.pool("work"), Pool)
    pool = await client.ensure_pool(
        "work", files=["tasks/", Path("a.jar"), {"x.py": b""}], nodes=3, spec=spec
    )
    assert_type(pool.id, str)
    assert_type(await pool.nodes(), list[Node])
    assert_type(await pool.explain(), Explanation)
    assert_type(await pool.create_job("report", env={"A": "b"}, secrets={"TOKEN": "x"}), Job)
    PoolSpec("work", python="3.12", env={"A": "b"}, secrets={"TOKEN": "x"})
    pool.session(env={"A": 1})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    await pool.wait_ready(2, timeout=60, progress=print)
    await pool.resize(4, spot=2)
    PoolSpec("work", java=21, start_user="root")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.ensure_pool("work", files=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    spec.nodes = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


async def jobs(job: Job) -> None:
    assert_type(job.session("me", env={"A": "b"}), Session)
    assert_type(job.name, str)
    if job.state == "closed":
        await job.delete()
    if job.state == "done":  # type: ignore[comparison-overlap]  # pyright: ignore[reportUnnecessaryComparison]
        await job.close()


async def submitting(pool: Pool) -> None:
    async with pool.session("me", job="report", files="tasks/", timeout=60) as session:
        assert_type(session, Session)
        task = await session.submit("x.py", "a 'b c'", task_id="1", tag={"from": "me"}, timeout=3)
        assert_type(task, Task)
        assert_type(await session.submit("x.py", 1, "two", 3.0), Task)
        assert_type(await session.submit("x.py", args=[1, 2], retry=RetryPolicy()), Task)
        assert_type(await session.submit_many("x.py", range(9), memory_limit=1 << 30), list[Task])
        assert_type(await session.run("x.py", 1, stream_output=True), Any)
        assert_type(session.map("x.py", [1, 2], ordered=True, window=10, tag="t"), ResultStream)
        await session.submit("x.py", [task], after=[task, task], on_failure="pass")
        assert_type(session.task("1"), Task)
        assert_type((task.task_id, task.done), tuple[str, bool])
        await task.cancel(inputs=True)
        await session.submit("x.py", timeout="3")  # type: ignore[call-overload]  # pyright: ignore
        await session.run("x.py", time_limit=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
        session.map("x.py", 3)  # type: ignore[call-overload]  # pyright: ignore
        session.map("x.py", [], retry=3)  # type: ignore[call-overload]  # pyright: ignore
        await session.submit()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def price(spot: float, volatility: float = 0.2) -> float:
    return spot * volatility


async def quote(symbol: str) -> tuple[str, float]:
    return symbol, 1.0


async def calling_functions(session: Session) -> None:
    assert_type(await session.submit(price, 100.0), Task[float])
    assert_type(await (await session.submit(price, 100.0, timeout=3)), float)
    assert_type(await session.run(price, 100.0), float)
    assert_type(await session.run(partial(price, volatility=0.3), 100.0), float)
    assert_type(await session.run(quote, "AAPL"), tuple[str, float])
    assert_type(await session.submit_many(quote, ["AAPL"]), list[Task[tuple[str, float]]])
    assert_type(await (await session.submit(price, 100.0)).outcome(), Result[float])
    assert_type(session.map(price, [1.0, 2.0]), ResultStream[float])
    async with session.map(quote, ["AAPL"], ordered=True, window=3, timeout=3) as stream:
        async for result in stream:
            assert_type(result, Result[tuple[str, float]])
            assert_type(result.value, tuple[str, float])
            assert_type(result.unwrap(), tuple[str, float])
    several = await session.map(partial(price, volatility=0.3), [1.0]).progress().collect()
    assert_type(several, Results[float])
    assert_type(several.failed, Results[float])
    assert_type(several.values, list[float])
    assert_type([each.value for each in several], list[float])
    assert_type(several.values[0] + 1.0, float)
    anything: ResultStream = session.map(price, [1.0])
    assert_type(anything, ResultStream[Any])
    several.values[0].upper()  # type: ignore[attr-defined]  # pyright: ignore
    session.map(price, [1.0], windw=3)  # type: ignore[call-overload]  # pyright: ignore
    await session.run(price, 100.0, timeout="3")  # type: ignore[call-overload]  # pyright: ignore


async def reading(session: Session, task: Task) -> None:
    async for result in session.results(follow=True):
        assert_type(result, Result)
    async with session.map("x.py", [1]) as mapped:
        assert_type(mapped, ResultStream)
    assert_type(session.take(3), Results)
    assert_type(await session.results().progress(total=3, label="x").collect(), Results)
    assert_type(session.counts, Counts)
    assert_type(session.events(), EventStream)
    async for event in session.events():
        assert_type(event, Event)
    assert_type(await task, Any)
    assert_type(await task.outcome(), Result)
    assert_type(task.status, Status)
    await task.cancel()
    for _ in session.results():  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues, reportUnknownVariableType]
        pass


async def results(result: Result, several: Results) -> None:
    assert_type(result.ok, bool)
    assert_type(result.status, Status)
    assert_type(result.error, str | None)
    assert_type(result.files, tuple[str, ...])
    assert_type(result.exception(), TaskError | None)
    assert_type(result.args, list[Any] | None)
    if (error := result.exception()) is not None:
        assert_type(error.original, Exception | None)
    assert_type(result.unwrap(), Any)
    assert_type(await result.open("report.txt"), BinaryIO)
    assert_type(several.failed, Results)
    assert_type(several.values, list[Any])
    assert_type(several[0], Result)
    fits: Sequence[Result] = several
    assert_type(len(fits), int)
    result.value = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    await result.outcome()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


def do_action(engine: Engine, args: list[Any]) -> tuple[Any, str]:
    """A task's own file, with its types."""
    engine.log("working")
    engine.progress(1, 2)
    assert_type(engine.working_dir, Path)
    assert_type(engine.java_runner("pi.jar", 100), list[str])
    if engine.attempt == 1:
        raise Retry(delay=3)
    if engine.cancelled:
        raise Permanent("too late")
    engine.logg("x")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    return args, "no error"


def errors(error: TaskError) -> str:
    match error.result.status:
        case Status.FAILED:
            return error.result.traceback or ""
        case _:
            return str(error)
