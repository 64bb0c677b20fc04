"""Everything that a task can do wrong has a named outcome, and the slot goes on; with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from node_agent.bundles.workspace import remove
from node_agent.child.frames import NODE_UNFIT
from node_agent.execution.slot_queue import SlotGone
from node_agent.system import process_groups
from tests.support.slot_bench import Bench, bench, materialise, value
from tests.support.waiting import BOUND, eventually

FINE = "def do_action(engine, args): return 'fine'"


async def goes_on(slot: Bench) -> None:
    """The slot still works."""
    assert value(await slot.python(FINE)) == "fine"


def gone(pid: int) -> bool:
    entry = process_groups.table().get(pid)
    return entry is None or entry.is_dead


@pytest.mark.parametrize(
    ("body", "exit_code", "error"),
    [
        ("import os; os._exit(3)", 3, "ended with exit code 3"),
        ("import os; os._exit(0)", 0, "ended with exit code 0"),
        ("import os; os.kill(os.getpid(), 9)", -9, "SIGKILL .*out of memory"),
        ("import os; os.abort()", -6, "SIGABRT"),
        ("import faulthandler; faulthandler._sigsegv()", -11, "SIGSEGV: Fatal Python error"),
        ("import sys; sys.exit(4)", 4, r"sys.exit\(4\)"),
        ("import sys; sys.exit('words')", 1, r"sys.exit\('words'\)"),
        ("import sys; sys.exit()", 0, r"sys.exit\(None\)"),
        ("raise KeyboardInterrupt", None, "KeyboardInterrupt"),
        ("raise GeneratorExit", None, "GeneratorExit"),
        ("import os; os.kill(os.getpid(), 15)", None, "its process got SIGTERM"),
        ("import os; os.closerange(3, 200); import time; time.sleep(300)", -9, "SIGKILL"),
    ],
)
async def test_a_process_that_ends_is_told_as_what_it_was(
    tmp_path: Path, body: str, exit_code: int | None, error: str
) -> None:
    """Exit codes, signals by name, exceptions that end processes; the next task has a new child."""
    async with bench(tmp_path) as slot:
        await slot.slot.ready()
        before = slot.slot.child_pid
        outcome = await slot.python(f"def do_action(engine, args):\n    {body}")
        assert outcome.kind == "WorkerDied"
        if exit_code is not None:
            assert outcome.exit_code == exit_code
        assert outcome.error is not None
        assert pytest.raises(AssertionError, match=error).matches(AssertionError(outcome.error)), outcome
        await goes_on(slot)
        assert slot.slot.child_pid != before


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("class E(Exception):\n    def __str__(self): raise RuntimeError\n", "E (its text cannot be shown"),
        ("class E(Exception):\n    def __str__(self): return 'x' * 50_000_000\n", "E: xxxxxx"),
        ("class E(Exception):\n    def __str__(self): raise SystemExit\n", "E (its text cannot be shown"),
        ("class E(Exception):\n    def __str__(self): return '\\ud800'\n", "E: ?"),
        ("class E(Exception):\n    def __str__(self): return 3\n", "E (its text cannot be shown"),
        ("E = RecursionError\n", "RecursionError"),
        ("E = lambda: ExceptionGroup('many', [ValueError('a'), OSError('b')])\n", "ExceptionGroup: many"),
    ],
)
async def test_exceptions_that_misbehave_are_failures_like_others(
    tmp_path: Path, source: str, error: str
) -> None:
    """Texts that raise, are enormous, or are no Unicode: told as well as can be, in bounded size."""
    async with bench(tmp_path) as slot:
        outcome = await slot.python(f"{source}def do_action(engine, args): raise E()")
        assert outcome.kind == "TaskFailed"
        assert outcome.error is not None
        assert outcome.error.startswith(error)
        assert len(outcome.error) < 5000
        assert len(outcome.traceback or "") < 20_000
        await goes_on(slot)


async def test_a_deep_recursion_is_a_failure_with_a_short_traceback(tmp_path: Path) -> None:
    """Python's own limit."""
    async with bench(tmp_path) as slot:
        outcome = await slot.python("def do_action(engine, args): return do_action(engine, args)")
        assert (outcome.kind, outcome.exception) == ("TaskFailed", "RecursionError")
        assert len(outcome.traceback or "") < 20_000


async def test_gigabytes_on_stdout_are_drained_and_their_tail_is_kept(tmp_path: Path) -> None:
    """More than two of them, on both streams at once; the agent's memory stays flat."""
    source = """
import os
def do_action(engine, args):
    block = b'x' * 10_000_000
    for _ in range(110):
        os.write(1, block); os.write(2, block)
    os.write(1, b'\\nlast words'); return 'done'
"""
    async with bench(tmp_path, output_limit=1000) as slot:
        await slot.slot.ready()
        before = process_groups.resident([os.getpid()])
        outcome = await slot.python(source)
        assert value(outcome) == "done"
        assert outcome.stdout.startswith("[1099999")
        assert outcome.stdout.endswith("\nlast words")
        assert len(outcome.stdout) == len(outcome.stderr) == 1000
        assert process_groups.resident([os.getpid()]) - before < 20_000_000


LEFTOVERS = {
    "child": "subprocess.Popen(['sleep', '300'])",
    "session": "subprocess.Popen(['sleep', '300'], start_new_session=True)",
    "orphan": "subprocess.run(['sh', '-c', '(setsid sleep 300 &)'])",
    "daemon": "daemon()",
}
LEAVING = """
import os, subprocess
def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(0, 100)
            os.execve('/bin/sleep', ['sleep', '300'], {})
        os._exit(0)
    os.wait()
def do_action(engine, args):
    %s
    return os.getpid()
"""


@pytest.mark.parametrize("how", LEFTOVERS.values(), ids=LEFTOVERS.keys())
async def test_processes_that_a_task_leaves_behind_are_killed(tmp_path: Path, how: str) -> None:
    """In its group or out of it, orphaned or with nothing left of what they were given; the child stays."""
    async with bench(tmp_path) as slot:
        child = value(await slot.python(LEAVING % how))
        assert process_groups.family(process_groups.table(), {child}) == {child}
        await goes_on(slot)
        assert slot.slot.child_pid == child


async def test_a_fork_that_comes_back_from_the_task_is_no_second_answer(tmp_path: Path) -> None:
    """It ends; it can neither speak to the agent nor use the engine."""
    source = """
import os
def do_action(engine, args):
    pid = os.fork()
    if pid == 0:
        try:
            engine.log('from the fork')
        except RuntimeError as error:
            open('outputs/said', 'w').write(str(error))
        return 'fork'
    os.waitpid(pid, 0)
    return 'parent'
"""
    async with bench(tmp_path) as slot:
        outcome = await slot.python(source)
        assert value(outcome) == "parent"
        assert slot.events == []
        assert "not in a fork" in outcome.outputs[0].read_text()
        await goes_on(slot)


async def test_a_thread_that_outlives_its_task_finds_the_engine_closed(tmp_path: Path) -> None:
    """And its own program, if it runs one, is killed."""
    source = """
import threading
told = []
def late(engine, done):
    done.wait()
    try:
        engine.log('late')
    except RuntimeError as error:
        told.append(str(error))
done = threading.Event()
def do_action(engine, args):
    if args:
        threading.Thread(target=late, args=(engine, done)).start()
        return None
    done.set()
    while not told: pass
    return told
"""
    async with bench(tmp_path) as slot:
        await slot.python(source, 1)
        assert "is over" in value(await slot.python(source))[0]


async def test_a_task_that_is_killed_leaves_other_slots_alone(tmp_path: Path) -> None:
    """Two slots: one child dies again and again, the other works."""
    async with bench(tmp_path / "a") as bad, bench(tmp_path / "b") as good:

        async def die() -> None:
            for _ in range(3):
                assert (await bad.python("import os\ndef do_action(e, a): os.abort()")).kind == "WorkerDied"

        async def work() -> list[Any]:
            return [value(await good.python(FINE)) for _ in range(50)]

        _, results = await asyncio.gather(die(), work())
        assert results == ["fine"] * 50


FORK_BOMB = """
import os, pathlib, time
def do_action(engine, args):
    for depth in range(7):
        if os.fork() == 0 and depth % 3 == 2:
            os.setsid()
    pathlib.Path(args[0], str(os.getpid())).touch()
    time.sleep(300)
"""


@pytest.mark.parametrize("timeout", [None, 2.0])
async def test_a_fork_bomb_is_ended_and_siblings_go_on(tmp_path: Path, timeout: float | None) -> None:
    """A hundred processes, some in sessions of their own: gone at the limit, or the cancellation."""
    started = tmp_path / "started"
    started.mkdir()
    async with bench(tmp_path / "a") as bad, bench(tmp_path / "b") as good:
        bomb = asyncio.create_task(bad.python(FORK_BOMB, str(started), timeout=timeout))
        await eventually(lambda: len(list(started.iterdir())) == 128)
        assert [value(await good.python(FINE)) for _ in range(5)] == ["fine"] * 5
        if timeout is None:
            bomb.cancel()
            with pytest.raises(asyncio.CancelledError):
                await bomb
        else:
            assert (await bomb).kind == "TaskTimeout"
        assert all(gone(int(process.name)) for process in started.iterdir())
        assert value(await good.python(FINE)) == value(await bad.python(FINE)) == "fine"


async def test_a_child_that_dies_between_tasks_is_replaced(tmp_path: Path) -> None:
    """The next task gets a new one."""
    async with bench(tmp_path) as slot:
        await goes_on(slot)
        pid = slot.slot.child_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: slot.slot.child_pid is None)
        await goes_on(slot)


async def test_a_child_that_cannot_start_raises_an_error_of_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raised, with what the interpreter said; a later task works when it is mended."""
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such library >&2\nexit 1\n")
    broken.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr("sys.executable", str(broken))
        async with bench(tmp_path) as slot:
            with pytest.raises(OSError, match="no such library"):
                await goes_on(slot)
            patch.undo()
            await goes_on(slot)


PARENTS = """
import os, subprocess, time
def do_action(engine, args):
    below = subprocess.Popen(["sleep", "300"])
    path = engine.working_dir.parents[2] / "pids"
    path.with_suffix(".new").write_text(f"{os.getpid()} {below.pid}")
    path.with_suffix(".new").rename(path)
    time.sleep(300)
"""


async def test_a_child_dies_with_its_agent_and_what_is_below_it_comes_to_the_next_adopter(
    tmp_path: Path,
) -> None:
    """SIGKILL of the agent: its child ends at once, the child's processes become ours, to be killed."""
    process_groups.adopt_orphans()
    code = f"""
import asyncio, pathlib
from tests.support.slot_bench import Bench
async def main():
    await Bench(pathlib.Path({str(tmp_path)!r})).run({{"task.py": {PARENTS!r}}}, "task.py")
asyncio.run(main())
"""
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=Path.cwd())
    file = tmp_path / "pids"
    await eventually(file.exists)
    child, below = map(int, file.read_text().split())
    agent.kill()
    await agent.wait()
    await eventually(lambda: gone(child))
    await eventually(lambda: process_groups.table()[below].parent == os.getpid())
    await process_groups.kill(lambda: process_groups.family(process_groups.table(), {below}))
    assert gone(below)


async def test_a_slot_that_is_closed_ends_its_task_at_once(tmp_path: Path) -> None:
    """As a second SIGTERM to the agent does."""
    source = """
import signal, time
def do_action(engine, args):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    engine.log('runs')
    time.sleep(300)
"""
    async with bench(tmp_path, grace=100.0) as slot:
        bundle, files = materialise(tmp_path, {"task.py": source})
        running = asyncio.create_task(slot.execute(slot.execution(bundle, "task.py", []), files))
        await eventually(lambda: slot.messages("log"))
        await slot.slot.aclose()
        async with asyncio.timeout(BOUND):
            with pytest.raises(SlotGone, match="was closed"):
                await running


async def test_a_slot_whose_folder_is_gone_gives_its_task_back_and_is_made_anew(tmp_path: Path) -> None:
    """Whatever the task said: it may have failed for this reason, or left files that are gone."""
    source = """
import os, shutil
def do_action(engine, args):
    if args:
        shutil.rmtree(args[0])
    open("x", "w")
    return os.environ["HOME"]
"""
    async with bench(tmp_path) as slot:
        bundle, files = materialise(tmp_path, {"task.py": source})
        folder = tmp_path / "slots" / "slot-0"
        with pytest.raises(SlotGone, match="was gone"):
            await slot.execute(slot.execution(bundle, "task.py", [str(folder)]), files)
        assert not slot.slot.is_intact()
        with pytest.raises(FileNotFoundError, match="is gone"):
            await slot.execute(slot.execution(bundle, "task.py", []), files)
        await slot.slot.restore()
        assert value(await slot.execute(slot.execution(bundle, "task.py", []), files)) == str(folder / "home")


async def test_a_task_whose_directory_is_gone_does_not_begin(tmp_path: Path) -> None:
    """It says that the node is unfit, which is no outcome; the next one runs."""
    async with bench(tmp_path) as slot:
        bundle, files = materialise(tmp_path, {"task.py": "def do_action(engine, args):\n    return args"})
        assert value(await slot.execute(slot.execution(bundle, "task.py", [1]), files)) == [1]
        for place in (tmp_path / "slots" / "slot-0").iterdir():
            if place.name != "home":
                remove(place)
        outcome = await slot.execute(slot.execution(bundle, "task.py", [2]), files)
        assert outcome.kind == NODE_UNFIT
        assert value(await slot.execute(slot.execution(bundle, "task.py", [3]), files)) == [3]


async def test_a_task_may_empty_its_home(tmp_path: Path) -> None:
    """Nothing of the agent is in it, nor in what Batch calls the task's directory."""
    script = (
        "#!/bin/sh\nrm -rf ~/* $HOME $AZ_BATCH_TASK_WORKING_DIR/* $AZ_BATCH_TASK_DIR/*\n"
        "ls -d $AZ_BATCH_TASK_DIR\n"
    )
    async with bench(tmp_path) as slot:
        for _ in range(2):
            ended = await slot.run(
                {"clean.sh": script, "x.py": "def do_action(engine, args): pass"}, "clean.sh"
            )
            assert ended.exit_code == 2
            assert slot.slot.is_intact()
        value(
            await slot.python(
                "def do_action(engine, args): open(__import__('os').path.expanduser('~/f'), 'w')"
            )
        )
