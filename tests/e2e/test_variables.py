"""Environment variables of tasks: of a pool, a job and a session, and what becomes of secrets."""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from batchflow import Client, ConfigurationError, Pool, PoolSpec, TaskError
from batchflow.errors import BlobNotFound
from batchflow.pools import sweep as sweeping
from batchflow.protocol import layout

SECRET = "a-secret-value-3b9c"
FILES = {
    "env.py": b"import os\n\ndef do_action(engine, args):\n    return [os.environ.get(x) for x in args]\n",
    "env.sh": b'#!/bin/sh\necho "$A $B"\n',
    "tool": b"#!/usr/bin/env a-tool-of-this-test\n",
}


def _by_value() -> Callable[..., list[str | None]]:
    """Return a function that brings no file of this project along."""

    def environ(*names: str) -> list[str | None]:
        import os

        return [os.environ.get(name) for name in names]

    return environ


_environ = _by_value()


async def _blobs(pool: Pool) -> list[str]:
    return sorted([info.name async for info in pool.runtime.ctl.list(layout.VARIABLES)])


async def test_files_functions_and_programs_have_the_variables_of_their_session(pool: Pool) -> None:
    """And a session without any, in the same slots, has none of them."""
    given = {"A": "plain", "OMP_NUM_THREADS": "7"}
    async with (
        pool.session(files=FILES, env=given, secrets={"B": SECRET}) as session,
        pool.session(files=FILES, env={"A": "other"}, share_processes=True) as other,
        pool.session(files=FILES, share_processes=True) as without,
    ):
        for _ in range(2):
            assert await session.run("env.py", args=["A", "B"]) == ["plain", SECRET]
            assert await session.run(_environ, "A", "B") == ["plain", SECRET]
            assert await session.run("env.sh") == [f"plain {SECRET}"]
            assert await session.run(_environ, "OMP_NUM_THREADS", "MKL_NUM_THREADS") == ["7", "7"]
            assert await other.run(_environ, "A", "B") == ["other", None]
            assert await without.run(_environ, "A", "B") == [None, None]
            assert await without.run("env.sh") == [" "]
            [threads] = await without.run(_environ, "OPENBLAS_NUM_THREADS")
            assert int(threads or 0) >= 1


async def test_a_task_that_changes_its_environment_changes_no_other_task(pool: Pool) -> None:
    def change() -> None:
        os.environ["A"] = "changed"
        del os.environ["B"]

    async with pool.session(env={"A": "1"}, secrets={"B": "2"}) as session:
        await session.run(change)
        assert await session.run(_environ, "A", "B") == ["1", "2"]


async def test_a_program_is_found_by_the_path_of_its_session(pool: Pool, tmp_path: Path) -> None:
    tool = tmp_path / "a-tool-of-this-test"
    tool.write_text("#!/bin/sh\necho found\n")
    tool.chmod(0o755)
    async with pool.session(files=FILES) as session:
        with pytest.raises(TaskError, match="not on this node's PATH"):
            await session.run("tool")
    async with pool.session(files=FILES, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}) as session:
        assert await session.run("tool") == ["found"]


async def test_the_variables_of_a_pool_and_a_job_reach_their_sessions_and_the_nearer_ones_win(
    client: Client, pool: Pool
) -> None:
    name = f"job-{uuid.uuid4().hex[:6]}"
    job = await pool.create_job(name, env={"B": "job", "C": "job"})
    spec = PoolSpec("shared", env={"A": "pool", "B": "pool"}, secrets={"C": SECRET})
    assert SECRET not in repr(spec)
    newer = await client.ensure_pool("shared", spec=spec)
    try:
        async with job.session(env={"D": "own"}) as session, newer.session() as outside:
            assert await session.run(_environ, "A", "B", "C", "D") == ["pool", "job", "job", "own"]
            assert await outside.run(_environ, "A", "B", "C", "D") == ["pool", "pool", SECRET, None]
            await client.ensure_pool("shared", spec=PoolSpec("shared", env={"A": "new"}))
            assert await outside.run(_environ, "A", "C") == ["pool", SECRET]
            async with pool.session() as later:  # of an object that knows the former manifest
                assert await later.run(_environ, "A", "B", "C") == ["new", None, SECRET]
    finally:
        await client.ensure_pool("shared", spec=PoolSpec("shared", env={}, secrets={}))
        await pool.delete_job(name)
    assert await _blobs(newer) == []


async def test_a_secret_is_in_a_blob_alone_which_goes_with_the_session(
    client: Client, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    events: list[str] = []
    async with pool.session(env={"A": "1"}, secrets={"TOKEN": SECRET}) as session:

        async def listen() -> None:
            async for event in session.events():
                events.append(str(event))  # noqa: PERF401

        listening = asyncio.create_task(listen())
        assert await session.run(_environ, "TOKEN") == [SECRET]
        with pytest.raises(TaskError) as caught:
            await session.run("missing.py")
        [blob] = await _blobs(pool)
        assert blob.startswith(f"variables/sessions/default/{session.name}/")
        listening.cancel()
        shown = [caplog.text, repr(session), str(await session.explain()), str(caught.value), *events]
    assert await _blobs(pool) == []
    held = [pool.runtime.ctl, pool.runtime.out]
    for container in held:
        async for info in container.list():
            try:
                content = (await container.get(info.name)).data
            except BlobNotFound:
                continue
            assert SECRET.encode() not in content, info.name
    assert not [text for text in shown if SECRET in text]


async def test_tasks_that_outlive_their_session_keep_its_variables_until_a_sweep(
    client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await client.ensure_pool(name, nodes=0, spec=PoolSpec(name, env={"P": "1"}))
    job = await pool.create_job("kept", env={"J": "1"})
    async with job.session("left", env={"A": "1"}) as session:
        await session.submit(_environ, "A")
        await session.flush()
    of_session, *rest = sorted(await _blobs(pool), key=lambda blob: "sessions" not in blob)
    assert of_session.startswith("variables/sessions/kept/left/")
    assert len(rest) == 2
    await pool.runtime.ctl.put("variables/jobs/gone/1.json", b"{}")
    await client.sweep(retention=0)
    assert len(await _blobs(pool)) == 4  # all are younger than a day
    monkeypatch.setattr(sweeping, "DAY", -10.0)
    await client.sweep(retention=-10.0)  # Blob tells the time in whole seconds
    assert sorted(await _blobs(pool)) == sorted(rest)
    await pool.delete_job("kept")
    assert [blob.split("/")[1] for blob in await _blobs(pool)] == ["pool"]
    await pool.delete()


async def test_a_task_whose_variables_are_gone_says_so(pool: Pool) -> None:
    async with pool.session("loses", env={"A": "1"}) as session:
        [blob] = await _blobs(pool)
        await pool.runtime.ctl.delete(blob)
        with pytest.raises(TaskError, match="its environment variables are gone"):
            await session.run(_environ, "A")


async def test_bad_variables_are_refused_before_anything_is_made(client: Client, pool: Pool) -> None:
    for make in (
        lambda: pool.session(secrets={"A B": SECRET}),
        lambda: pool.create_job("never", secrets={"A B": SECRET}),
        lambda: client.create_pool(PoolSpec("never", secrets={"A B": SECRET})),
    ):
        with pytest.raises(ConfigurationError, match="'A B'") as caught:
            await make()
        assert SECRET not in str(caught.value)
