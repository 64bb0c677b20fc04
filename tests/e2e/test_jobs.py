"""Jobs on real services: made, listed with their counts, closed, deleted without a trace."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from batchflow import Client, Pool
from batchflow.errors import JobClosed, JobExists, JobNotFound, SessionClosed
from batchflow.model import JobCounts
from tests.support.waiting import eventually_equal

PATIENCE = 30.0
TASKS = Path(__file__).parent / "tasks"
LARGE = {"large.py": b"def do_action(engine, args):\n    return 'x' * 200_000\n"}


@pytest.fixture
async def quick(client: Client) -> AsyncIterator[Client]:
    """A client whose sessions and agents tell of themselves often."""
    session = replace(client.settings.session, presence_interval=0.2)
    agent = replace(client.settings.agent, heartbeat_interval=1.0)
    async with Client(replace(client.settings, session=session, agent=agent)) as other:
        yield other


@pytest.fixture
async def own(quick: Client) -> AsyncIterator[Pool]:
    """A pool of one node that no other test sees."""
    files = {path.name: path for path in TASKS.iterdir() if path.is_file()} | LARGE
    pool = await quick.ensure_pool(f"jobs-{uuid.uuid4().hex[:8]}", files=files, nodes=1)
    yield pool
    await pool.delete()


async def blobs(pool: Pool, job: str) -> set[str]:
    """Whatever in the pool's containers has the job's name in its own, by its kind."""
    containers = (pool.runtime.ctl, pool.runtime.out)
    names = [info.name for container in containers async for info in container.list()]
    return {name.partition("/")[0] for name in names if job in name.removesuffix(".json").split("/")}


async def result_messages(pool: Pool) -> int:
    """Messages in the pool's queue of results."""
    (queue,) = pool.runtime.manifest.results_queues
    return (await pool.runtime.connections.admin.figures(queue.entity)).active


async def work(pool: Pool) -> int:
    """Messages in the pool's queue of tasks, those that agents hold too."""
    (queue,) = pool.runtime.manifest.task_queues
    return (await pool.runtime.connections.admin.figures(queue.entity)).active


async def running(pool: Pool) -> int:
    """Tasks that the pool's agents say they run."""
    return sum(len(beat.running) for beat in await pool.heartbeats())


async def test_tasks_of_a_session_that_closed_at_once_run(own: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing waits until there are agents, but not where no task is waiting."""
    compute = own.runtime.connections.compute
    begun, go_on, create_job = anyio.Event(), anyio.Event(), compute.create_job

    async def slowly(job_id: str, pool_id: str) -> None:
        begun.set()
        await go_on.wait()
        await create_job(job_id, pool_id)

    monkeypatch.setattr(compute, "create_job", slowly)
    session = await own.session("nothing")
    await begun.wait()
    await session.aclose()
    async with anyio.create_task_group() as group:
        begun = anyio.Event()
        session = await own.session("brief")
        await session.submit("echo.py", args=[1])
        await begun.wait()
        group.start_soon(session.aclose)
        await eventually_equal(lambda: work(own), 1)
        go_on.set()
    await eventually_equal(lambda: work(own), 0)


async def test_job_is_made_closed_and_deleted_once(client: Client) -> None:
    """A closed job refuses tasks and is still listed; a deleted job is gone."""
    pool = await client.ensure_pool(f"jobs-{uuid.uuid4().hex[:8]}", files=LARGE, nodes=0)
    job = await pool.create_job("one")
    with pytest.raises(JobExists):
        await pool.create_job("one")
    await pool.create_job("two")
    session = await job.session("reader")
    await job.close()
    with pytest.raises(JobClosed):
        await session.submit("large.py")
    await session.aclose()
    with pytest.raises(JobClosed):
        await job.session("late")
    assert [(each.name, each.state) async for each in pool.jobs()] == [("one", "closed"), ("two", "open")]
    await job.delete()
    await job.delete()
    with pytest.raises(JobNotFound):
        await pool.job("one")
    await pool.delete_all_jobs()
    assert [each async for each in pool.jobs()] == []
    await pool.delete()


async def test_jobs_are_listed_with_their_counts(own: Pool, client: Client) -> None:
    """Every client sees what runs and waits in which job, and of its own session at once."""
    elsewhere = await client.pool(own.id)
    async with own.session("worker", job="busy") as session, own.session("idle", job="calm"):
        await session.run("echo.py")
        sleeping = await session.submit_many("sleeps.py", [600, 600, 600])
        for pool in (own, elsewhere):
            jobs = {job.name: job async for job in pool.jobs()}
            await eventually_equal(
                jobs["busy"].counts, JobCounts(sessions=1, waiting=2, running=1, succeeded=1)
            )
            await eventually_equal(jobs["calm"].counts, JobCounts(sessions=1))
        for task in sleeping:
            await task.cancel()
        await eventually_equal(jobs["busy"].counts, JobCounts(sessions=1, succeeded=1, cancelled=3))
        assert (await jobs["busy"].counts()).done == 4
    await eventually_equal(jobs["busy"].counts, JobCounts(succeeded=1, cancelled=3))
    async with own.session("worker", job="busy") as session:
        await session.run("echo.py")
        await eventually_equal(jobs["busy"].counts, JobCounts(sessions=1, succeeded=2, cancelled=3))
    await eventually_equal(jobs["busy"].counts, JobCounts(succeeded=2, cancelled=3))
    assert await jobs["calm"].counts() == JobCounts()


async def test_deleting_a_job_leaves_nothing_of_it(own: Pool) -> None:
    """Its tasks end; its messages, arguments, results and files are gone; another job keeps its own."""
    for name in ("kept", "gone"):
        async with own.session("writer", job=name) as session:
            await session.submit("large.py")
            await session.submit("leaves_files.py", args=["one", "two"])
    await eventually_equal(lambda: work(own), 0)
    async with own.session("writer", job="gone") as session:
        for number in range(3):  # a message each: more than the two that end with the job may leave behind
            await session.submit("echo.py", args=number)
            await eventually_equal(lambda: work(own), 0)
    assert {"results", "outputs"} <= await blobs(own, "gone")
    async with own.session("reader", job="gone") as reader:
        tasks = [
            await reader.submit("sleeps.py", args=[600]),
            await reader.submit("echo.py", args="y" * 300_000),
        ]
        await reader.flush()
        await eventually_equal(lambda: running(own), 1)
        before = await result_messages(own)
        assert "args" in await blobs(own, "gone")
        await own.delete_job("gone")
        for task in tasks:
            with pytest.raises(SessionClosed):
                await task
    await eventually_equal(lambda: work(own), 0)
    await eventually_equal(lambda: running(own), 0)
    assert 0 < await result_messages(own) < before
    assert await blobs(own, "gone") <= {"cancel"}
    async with own.session("writer", job="kept") as session:
        stream = session.results(follow=True)
        results = [await anext(stream) for _ in range(2)]
    assert sorted(len(result.files) for result in results) == [0, 2]
    assert all(result.ok for result in results)


async def test_deleting_all_jobs_leaves_nothing(own: Pool) -> None:
    """Messages, results and files of every job are gone."""
    for name in ("one", "two"):
        async with own.session("writer", job=name) as session:
            await session.submit("large.py")
    await eventually_equal(lambda: work(own), 0)
    await own.delete_all_jobs()
    assert await result_messages(own) == 0
    for name in ("one", "two"):
        assert await blobs(own, name) <= {"cancel"}


async def test_job_with_the_name_of_a_deleted_one_starts_anew(own: Pool) -> None:
    """What the deletion cancelled is not cancelled in the new job."""
    async with own.session("writer", job="again") as session:
        await session.run("echo.py")
    await own.delete_job("again")
    async with own.session("writer", job="again") as session:
        assert await session.run("echo.py", "new") == ["new"]
