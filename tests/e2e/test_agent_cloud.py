"""Agents as they are: under their supervisors, on the nodes of a local cloud, behind the real SDKs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchflow import Client, Pool, Session
from batchflow.model import Result, Status
from batchflow.retry import RetryPolicy
from batchflow.support import linux
from tests.support.cloud import cloud_process
from tests.support.processes import is_alive
from tests.support.waiting import eventually

PATIENCE = 40.0
TASKS = {
    "echo.py": "def do_action(engine, args):\n    return args\n",
    "slow.py": "import time\ndef do_action(engine, args):\n    time.sleep(args[0])\n    return args\n",
    "killer.py": (
        "import os, signal, time\n"
        "def do_action(engine, args):\n    os.kill(os.getppid(), signal.SIGKILL)\n    time.sleep(60)\n"
    ),
    "orphan.py": (
        "import subprocess, sys, time\n"
        "def do_action(engine, args):\n"
        "    child = subprocess.Popen(['sleep', '3600'], start_new_session=True)\n"
        "    open(args[0], 'w').write(str(child.pid))\n"
        "    time.sleep(3600)\n"
    ),
    "java.py": (
        "import os\n"
        "def do_action(engine, args):\n"
        "    os.environ['JAVA_HOME'] = args[0]\n"
        "    return engine.java_runner('pi.jar')\n"
    ),
    "flaky.py": (
        "def do_action(engine, args):\n"
        "    with open(args[0], 'a') as tries:\n        tries.write('x')\n"
        "    if len(open(args[0]).read()) < 3:\n        raise ValueError('not yet')\n"
        "    return 'at last'\n"
    ),
}


@pytest.fixture(scope="module")
def cloud_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that the local cloud of these tests writes."""
    return tmp_path_factory.mktemp("cloud") / "cloud.toml"


@pytest.fixture(scope="module")
def cloud(cloud_config: Path) -> Iterator[subprocess.Popen[str]]:
    """A local cloud with one node of two slots; locks run out after five seconds."""
    with (
        cloud_process(cloud_config, "--nodes", "1", "--slots", "2") as process,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("BATCHFLOW_POOL_LOCK_DURATION", "5")
        yield process


@pytest.fixture
async def client(cloud: subprocess.Popen[str], cloud_config: Path) -> AsyncIterator[Client]:
    async with Client.from_config(cloud_config) as client:
        yield client


@pytest.fixture
async def pool(client: Client, tmp_path: Path) -> Pool:
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, text in TASKS.items():
        (folder / name).write_text(text)
    return await client.ensure_pool("agents", files=[folder], nodes=1)


@pytest.fixture
async def session(pool: Pool) -> AsyncIterator[Session]:
    async with pool.session(f"test-{uuid.uuid4().hex[:8]}") as session:
        await asyncio.wait_for(session.run("echo.py", args=0), PATIENCE)
        yield session


def processes(cloud: subprocess.Popen[str]) -> tuple[int, int]:
    """The pids of the node's supervisor and of its agent."""
    found = {pid for pid in linux.descendants(cloud.pid) if _arguments(pid)[1:3] == [b"-m", b"node_agent"]}
    parents = {pid: parent_of(pid) for pid in found}
    agents = [pid for pid, parent in parents.items() if parent in found]
    assert len(agents) == 1
    supervisor = parents[agents[0]]
    assert supervisor is not None
    return supervisor, agents[0]


def _arguments(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def parent_of(pid: int) -> int | None:
    """The parent of a living process."""
    stat = linux.read_stat(pid)
    return None if stat is None or stat.is_dead else stat.parent


async def outcome_of(task: object) -> Result:
    return await asyncio.wait_for(task.outcome(), PATIENCE)  # type: ignore[attr-defined]


async def _with_agents(pool: Pool, outcomes: list[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Wait for them; meanwhile start agents, which Batch may not know yet to have ended."""
    waiting = asyncio.gather(*outcomes)
    async with asyncio.timeout(PATIENCE):
        while not waiting.done():
            await pool.start()
            await asyncio.wait([waiting], timeout=2.0)
    return await waiting


async def orphan(session: Session, path: Path) -> tuple[object, int]:
    """A task that runs, and a process of its in a session of its own."""
    task = await session.submit("orphan.py", args=str(path))
    await eventually(lambda: path.exists() and path.read_text() != "")
    return task, int(path.read_text())


def threads(pid: int) -> int:
    """Count the threads of a process; 1 when it has ended, as a spare child may."""
    try:
        return len(list(Path(f"/proc/{pid}/task").iterdir()))
    except FileNotFoundError:
        return 1


async def test_agent_uses_threads_for_files_alone(cloud: subprocess.Popen[str], session: Session) -> None:
    """The supervisor, the template and the children have one thread. The agent also has its executor's,
    which work on files and look up names. It is so idle, and with both slots and all links at work."""
    supervisor, agent = processes(cloud)
    family = [supervisor, agent, *linux.descendants(agent)]
    assert len(family) >= 5
    idle = {pid: threads(pid) for pid in family}
    tasks = [await session.submit("slow.py", args=0.001 * number) for number in range(100)]
    most = dict(idle)
    while not all(task.status.final for task in tasks):
        most = {pid: max(most[pid], threads(pid)) for pid in family}
        await asyncio.sleep(0.005)
    assert [(await outcome_of(task)).status for task in tasks] == [Status.SUCCEEDED] * 100
    executor = min(32, (os.cpu_count() or 1) + 4)
    assert idle.pop(agent) <= most.pop(agent) <= 1 + executor
    assert set(idle.values()) == set(most.values()) == {1}


async def test_killed_agent_loses_no_task(
    cloud: subprocess.Popen[str], session: Session, tmp_path: Path
) -> None:
    """The processes of its tasks die with it, in every session; every task still gets its one result."""
    tasks = [await session.submit("slow.py", args=0.3) for _ in range(6)]
    _, agent = processes(cloud)
    os.kill(agent, signal.SIGKILL)
    results = [await outcome_of(task) for task in tasks]
    assert [result.status for result in results] == [Status.SUCCEEDED] * 6


@pytest.mark.parametrize("victim", ["supervisor", "agent", "child"])
async def test_killing_agent_supervisor_or_child_leaves_no_process_of_a_task(
    cloud: subprocess.Popen[str], session: Session, tmp_path: Path, victim: str
) -> None:
    """The task ends with an outcome."""
    task, stray = await orphan(session, tmp_path / "pid")
    supervisor, agent = processes(cloud)
    parent = parent_of(stray)
    assert parent is not None
    os.kill({"supervisor": supervisor, "agent": agent, "child": parent}[victim], signal.SIGKILL)
    await eventually(lambda: not is_alive(stray), seconds=5.0)
    if victim != "child":
        await task.cancel()  # type: ignore[attr-defined]
    result = await outcome_of(task)
    assert result.kind == ("WorkerDied" if victim == "child" else "TaskCancelled")
    assert await asyncio.wait_for(session.run("echo.py", args=1), PATIENCE) is not None


JAVA = """#!/bin/sh
trap '' TERM
setsid sh -c 'trap "" TERM; echo $$ >> "{pids}"; exec sleep 3600' &
echo $$ >> "{pids}"
while :; do sleep 1; done
"""
"""It listens to nobody, and has a child in a session of its own."""


@pytest.mark.parametrize("end", ["supervisor", "agent", "child", "timeout", "cancel"])
async def test_java_processes_of_a_task_end_with_the_task(
    cloud: subprocess.Popen[str], session: Session, tmp_path: Path, end: str
) -> None:
    """What the child started by itself is gone, however the task ends; one result comes."""
    pids = tmp_path / "pids"
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(JAVA.format(pids=pids))
    java.chmod(0o755)
    task = await session.submit("java.py", args=str(tmp_path), timeout=3.0 if end == "timeout" else None)
    await eventually(lambda: pids.exists() and pids.read_text().count("\n") == 2)
    started = [int(pid) for pid in pids.read_text().split()]
    supervisor, agent = processes(cloud)
    match end:
        case "supervisor" | "agent":
            os.kill({"supervisor": supervisor, "agent": agent}[end], signal.SIGKILL)
        case "child":
            child = parent_of(next(pid for pid in started if parent_of(pid) not in started))
            assert child is not None
            os.kill(child, signal.SIGKILL)
        case "cancel":
            await task.cancel()
    await eventually(lambda: not any(is_alive(pid) for pid in started), seconds=10.0)
    if end in ("supervisor", "agent"):
        await task.cancel()
    kinds = {"timeout": "TaskTimeout", "child": "WorkerDied"}
    assert (await outcome_of(task)).kind == kinds.get(end, "TaskCancelled")


async def test_cancelling_a_task_ends_its_process_tree(session: Session, tmp_path: Path) -> None:
    """It ends within two seconds of `cancel`."""
    task, stray = await orphan(session, tmp_path / "pid")
    await task.cancel()  # type: ignore[attr-defined]
    await eventually(lambda: not is_alive(stray), seconds=2.5)
    assert (await outcome_of(task)).status is Status.CANCELLED


async def test_retried_task_travels_through_the_broker_for_each_attempt(
    session: Session, tmp_path: Path
) -> None:
    """Each attempt is a message of its own; their errors are in the result."""
    policy = RetryPolicy(max_attempts=5, backoff=0.1)
    task = await session.submit("flaky.py", args=str(tmp_path / "tries"), retry=policy)
    result = await outcome_of(task)
    assert (result.value, result.attempt) == ("at last", 3)
    assert [past.error for past in result.attempts] == ["ValueError: not yet"] * 2


async def test_stopped_agent_hands_back_what_it_cannot_finish(
    cloud: subprocess.Popen[str], pool: Pool, session: Session
) -> None:
    """On SIGTERM to the supervisor the agent drains; another agent runs the rest."""
    tasks = [await session.submit("slow.py", args=0.5) for _ in range(8)]
    await outcome_of(tasks[0])
    supervisor, _ = processes(cloud)
    os.kill(supervisor, signal.SIGTERM)
    await eventually(lambda: not is_alive(supervisor))
    results = await _with_agents(pool, [task.outcome() for task in tasks])
    assert {result.status for result in results} == {Status.SUCCEEDED}
    assert {result.attempt for result in results} == {1}


async def test_task_that_kills_its_agent_costs_its_companions_only_time(session: Session) -> None:
    """The task is blamed when it ran alone; after three times it is poison."""
    killer = await session.submit("killer.py")
    others = [await session.submit("echo.py", args=number) for number in range(5)]
    result = await outcome_of(killer)
    assert result.kind == "TaskPoisoned"
    assert len(result.attempts) == 2
    assert [(await outcome_of(other)).status for other in others] == [Status.SUCCEEDED] * 5


NAPS = """
import pathlib, time
def do_action(engine, args):
    pathlib.Path(args[0], str(args[1])).touch()
    time.sleep(args[2])
"""


async def test_tasks_of_a_pack_never_start_a_second_after_they_were_cancelled(
    pool: Pool, tmp_path: Path
) -> None:
    """They were given to a child together with others, because tasks of their kind are known to be short."""
    async with pool.session(files={"naps.py": NAPS.encode()}) as session:
        for number in range(30):
            await session.run("naps.py", args=[str(tmp_path), f"quick-{number}", 0.0], timeout=PATIENCE)
        tasks = [await session.submit("naps.py", args=[str(tmp_path), n, 0.09]) for n in range(80)]
        await eventually((tmp_path / "0").exists)
        for task in tasks[40:]:
            await task.cancel()
        told = time.time()
        outcomes = [await outcome_of(task) for task in tasks]
    assert {outcome.status for outcome in outcomes[:40]} == {Status.SUCCEEDED}
    marks = [tmp_path / str(number) for number in range(40, 80)]
    assert all(mark.stat().st_mtime <= told + 1.0 for mark in marks if mark.exists())


MEETS = """
import pathlib, time
import answer
def do_action(engine, args):
    mine, other = map(pathlib.Path, args)
    mine.touch()
    while not other.exists():
        time.sleep(0.01)
    import late
    return [answer.WORD, late.WORD]
"""


def _meeting(word: str) -> dict[str, bytes]:
    """A bundle whose task waits for another one's file, and imports after that."""
    value = f"WORD = {word!r}\n".encode()
    return {"meets.py": MEETS.encode(), "answer.py": value, "late.py": value}


async def test_sessions_with_different_files_run_at_once_on_one_agent(pool: Pool, tmp_path: Path) -> None:
    """Their files have the same names: each session has its own modules, those imported late too."""
    left, right = str(tmp_path / "left"), str(tmp_path / "right")
    async with pool.session(files=_meeting("one")) as one, pool.session(files=_meeting("two")) as two:
        tasks = [await one.submit("meets.py", left, right), await two.submit("meets.py", right, left)]
        assert [(await outcome_of(task)).value for task in tasks] == [["one"] * 2, ["two"] * 2]


async def test_running_task_keeps_the_files_that_it_was_submitted_with(pool: Pool, tmp_path: Path) -> None:
    """A task that runs imports what it was submitted with, although newer files run beside it by then."""
    left, right = str(tmp_path / "left"), str(tmp_path / "right")
    async with pool.session(files=_meeting("old")) as session:
        running = await session.submit("meets.py", left, right)
        await eventually(Path(left).exists)
        await session.update_files(_meeting("new"))
        newer = await session.submit("meets.py", right, left)
        assert (await outcome_of(newer)).value == ["new", "new"]
        assert (await outcome_of(running)).value == ["old", "old"]


async def test_log_of_an_agent_is_readable_after_node_and_pool_are_gone(client: Client) -> None:
    """What an agent logged can be read when its machine is gone, and when its pool is."""
    pool = await client.ensure_pool("logged", files={"echo.py": TASKS["echo.py"].encode()}, nodes=1)
    async with pool.session() as session:
        await asyncio.wait_for(session.run("echo.py"), PATIENCE)
    await pool.wait_ready(1)  # the first result does not wait for the first heartbeat
    (beat,) = await pool.heartbeats()
    await pool.resize(0)
    async with asyncio.timeout(PATIENCE):
        while await pool.nodes():  # noqa: ASYNC110 - what is awaited is elsewhere
            await asyncio.sleep(0.1)
    (log,) = [log async for log in client.logs("logged")]
    assert (log.node, log.agent, log.kept) == (beat.node, beat.agent, False)
    text = await log.read()
    assert {json.loads(line)["event"] for line in text.splitlines()} >= {"agent_starting", "agent_ready"}
    await pool.delete()
    (kept,) = [log async for log in client.logs("logged")]
    assert (kept.node, kept.agent, kept.kept) == (beat.node, beat.agent, True)
    assert await kept.read() == text
