"""Finding and killing a program's processes, wherever they went."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from batchflow.support import linux
from node_agent.child.runner import NICENESS
from node_agent.execution.program import Program, ProgramEnded
from node_agent.system import process_groups
from tests.support.waiting import BOUND, eventually


@pytest.fixture(autouse=True)
async def _adopter() -> None:
    process_groups.adopt_orphans()


def is_gone(pid: int) -> bool:
    """Whether a process has ended."""
    entry = process_groups.table().get(pid)
    return entry is None or entry.is_dead


async def started(root: Path, script: str, mark: str) -> tuple[Program, asyncio.Task[ProgramEnded]]:
    """A shell script that runs, and has written "ready" to stdout."""
    ready = asyncio.Event()
    env = {**process_groups.environment(Path()), process_groups.MARK: mark}
    program = Program(["/bin/sh", "-c", script], cwd=root, env=env, on_output=lambda *_: ready.set())
    task = asyncio.create_task(program.run())
    async with asyncio.timeout(BOUND):
        await ready.wait()
    return program, task


async def pids(path: Path, count: int) -> list[int]:
    """Numbers that a script's processes write to a file, one to a line."""
    await eventually(lambda: path.exists() and len(path.read_text().split()) >= count)
    return [int(word) for word in path.read_text().split()]


ESCAPES = {
    "child": "sleep 300 & echo $! >> pids; echo ready; wait",
    "other session": "setsid sh -c 'echo $$ >> pids; exec sleep 300' & echo ready; wait",
    "orphan": "(setsid sh -c 'echo $$ >> pids; exec sleep 300' &) ; echo ready; exec sleep 300",
    "deaf to TERM": "sh -c 'trap \"\" TERM; echo $$ >> pids; echo ready; while :; do sleep 300; done'",
}


@pytest.mark.parametrize("script", ESCAPES.values(), ids=ESCAPES.keys())
async def test_nothing_escapes_by_leaving_session_or_parent(tmp_path: Path, script: str) -> None:
    """A child, one with a session of its own, an orphan in another session, one that ignores SIGTERM."""
    program, running = await started(tmp_path, script, "escape-mark")
    assert program.pid is not None
    root = program.pid
    (escaped,) = await pids(tmp_path / "pids", 1)

    def find() -> set[int]:
        return process_groups.family(process_groups.table(), {root}, ("escape-mark",))

    assert {root, escaped} <= find()
    async with asyncio.timeout(BOUND):
        await process_groups.kill(find, {root})
        assert (await running).exit_code == -signal.SIGKILL
    assert find() == set()
    await eventually(lambda: is_gone(escaped))


async def test_the_dead_are_buried_although_their_parents_died_with_them(tmp_path: Path) -> None:
    """An orphan comes to us a moment after its end: none stays in the process table as a zombie."""
    for number in range(40):
        here = tmp_path / str(number)
        here.mkdir()
        program, task = await started(here, ESCAPES["other session"], f"dead-{number}")
        (grandchild,) = await pids(here / "pids", 1)
        assert program.pid is not None
        roots = {program.pid}
        await process_groups.kill(
            partial(
                lambda roots, mark: process_groups.family(process_groups.table(), roots, {mark}),
                roots,
                f"dead-{number}",
            ),
            roots,
        )
        await task
        assert grandchild not in process_groups.table()


async def test_an_orphan_that_died_by_itself_is_buried(tmp_path: Path) -> None:
    """Whoever ends before the killing begins, its parent still alive, is not forgotten either."""
    script = "(setsid sh -c 'echo $$ >> pids; exec sleep 300' &) ; echo ready; exec sleep 300"
    program, task = await started(tmp_path, script, "early")
    (orphan,) = await pids(tmp_path / "pids", 1)
    os.kill(orphan, signal.SIGKILL)
    await eventually(lambda: is_gone(orphan))
    assert program.pid is not None
    root = program.pid
    await process_groups.kill(
        lambda: process_groups.family(process_groups.table(), {root}, {"early"}), {root}
    )
    assert (await task).exit_code == -signal.SIGKILL
    assert orphan not in process_groups.table()


async def test_processes_that_fork_while_they_are_killed_are_all_killed(tmp_path: Path) -> None:
    """Stopped first, then killed: a bounded fork bomb does not outrun the killing."""
    bomb = "f() { [ $1 -gt 0 ] && { f $(($1 - 1)) & f $(($1 - 1)) & }; exec sleep 300; }; echo ready; f 5"
    program, running = await started(tmp_path, bomb, "bomb-mark")
    root = program.pid
    assert root is not None

    def find() -> set[int]:
        return process_groups.family(process_groups.table(), {root}, ("bomb-mark",))

    async with asyncio.timeout(BOUND):
        await process_groups.kill(find, {root})
        await running
    assert find() == set()


async def test_strangers_are_left_alone(tmp_path: Path) -> None:
    """A process that is neither below the root nor marked is not found."""
    stranger = await asyncio.create_subprocess_exec("sleep", "300", start_new_session=True)
    program, running = await started(tmp_path, "echo ready; exec sleep 300", "own-mark")
    assert program.pid is not None
    found = process_groups.family(process_groups.table(), {program.pid}, ("own-mark",))
    assert found == {program.pid}
    linux.signal_all(found, signal.SIGTERM)
    assert (await running).exit_code == -signal.SIGTERM
    stranger.kill()
    await stranger.wait()


async def test_what_a_program_leaves_behind_is_found_after_its_end(tmp_path: Path) -> None:
    """In its session, or marked in another one."""
    script = "sleep 300 & echo $! >> pids; setsid sh -c 'echo $$ >> pids; exec sleep 300' & echo ready"
    program, running = await started(tmp_path, script, "behind-mark")
    ended = await running
    left = set(await pids(tmp_path / "pids", 2))

    def find() -> set[int]:
        return process_groups.left_behind(ended.pid, "behind-mark")

    assert program.pid is None
    assert find() == left
    await process_groups.kill(find)
    assert find() == set()


@pytest.mark.parametrize("setpriv", [True, False])
async def test_programs_die_with_the_process_that_started_them(tmp_path: Path, setpriv: bool) -> None:
    """SIGKILL of the agent is the end of its programs, with and without `setpriv`."""
    code = f"""
import asyncio, pathlib
from node_agent.system import process_groups
if not {setpriv}:
    process_groups._setpriv = lambda: None
async def main():
    process_groups.adopt_orphans()
    process = await process_groups.spawn(
        ["sleep", "300"], cwd=pathlib.Path("."), env={{}}, stdout=1, stderr=2
    )
    print(process.pid, flush=True)
    await process.wait()
asyncio.run(main())
"""
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, cwd=Path.cwd()
    )
    assert agent.stdout is not None
    program = int(await agent.stdout.readline())
    comm = Path(f"/proc/{program}/comm")
    await eventually(lambda: comm.read_text().strip() == "sleep")
    agent.kill()
    await agent.wait()
    await eventually(lambda: is_gone(program))


async def test_a_program_has_its_own_session_no_stdin_and_none_of_the_agents_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connection strings in the agent's environment stay there; the kernel prefers tasks to the agent."""
    monkeypatch.setenv("BATCHFLOW_SECRET", "key")
    monkeypatch.setenv("USERS_OWN", "kept")
    script = "read line; env; cat /proc/self/oom_score_adj; ls /proc/self/fd | wc -l; ps -o sid= -p $$"
    env = process_groups.environment(tmp_path / "home")
    program = Program(["/bin/sh", "-c", f"sleep 0; {script}"], cwd=tmp_path, env=env)
    ended = await program.run()
    text = ended.stdout.text()
    assert "BATCHFLOW_SECRET" not in text
    assert f"HOME={tmp_path / 'home'}\n" in text
    assert f"AZ_BATCH_TASK_WORKING_DIR={tmp_path / 'home'}\n" in text
    assert "USERS_OWN=kept" in text
    assert int(text.split()[-1]) == ended.pid != os.getsid(0)


async def test_a_program_steps_back_behind_the_agent(tmp_path: Path) -> None:
    """It has a lower priority than whoever renews leases and sends results."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    program = Program(
        ["/bin/sh", "-c", "sleep 0.1; nice"], cwd=tmp_path, env=process_groups.environment(Path())
    )
    assert int((await program.run()).stdout.text()) == min(own + NICENESS, 19)


def test_signals_have_names() -> None:
    """Unknown ones a number."""
    assert process_groups.signal_name(11) == "SIGSEGV"
    assert process_groups.signal_name(99) == "signal 99"
