"""Tasks of different sessions in one slot: never in one process, and quick to change between."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from batchflow.support.linux import read_stat
from node_agent.execution.outcomes import Outcome
from tests.support.processes import is_alive
from tests.support.slot_bench import Bench, bench, keep, materialise, value
from tests.support.waiting import eventually

PID = "import os\ndef do_action(engine, args):\n    return os.getpid()\n"


async def run_as(slot: Bench, session: str, source: str, **limits: Any) -> Outcome:
    bundle, files = materialise(slot.root, {"task.py": source})
    return await slot.execute(slot.execution(bundle, "task.py", [], session, **limits), files)


async def test_sessions_never_share_a_process_and_each_finds_its_own_again(tmp_path: Path) -> None:
    """In turns, in one slot."""
    async with bench(tmp_path) as slot:
        pids = [value(await run_as(slot, session, PID)) for session in ("a", "b", "a", "b")]
        assert pids[:2] == pids[2:]
        assert pids[0] != pids[1]
        assert slot.slot.child_pid == pids[1]
    assert not any(is_alive(pid) for pid in pids)


async def test_threads_that_a_session_left_stand_still_while_another_runs(tmp_path: Path) -> None:
    """They go on with the session's next task."""
    leave = (
        "import os, threading, time\n"
        "def do_action(engine, args):\n"
        "    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
        "    return os.getpid()\n"
    )
    async with bench(tmp_path) as slot:
        pid = value(await run_as(slot, "a", leave))
        for _ in range(2):
            await run_as(slot, "b", PID)
            await eventually(lambda: (stat := read_stat(pid)) is not None and stat.state == b"T")
            assert value(await run_as(slot, "a", leave)) == pid


async def test_nothing_of_one_session_is_seen_by_another(tmp_path: Path) -> None:
    """Modules, builtins, environment; nor by sessions that come later."""
    spoil = (
        "import builtins, os, sys\n"
        "def do_action(engine, args):\n"
        "    builtins.sorted = None\n"
        "    os.environ['MARK'] = 'spoiled'\n"
        "    sys.modules['node_agent.child.task_values'].encode = None\n"
    )
    look = "import os\ndef do_action(engine, args):\n    return [sorted([2, 1]), os.environ.get('MARK')]\n"
    async with bench(tmp_path) as slot:
        await run_as(slot, "a", spoil)
        assert [value(await run_as(slot, session, look)) for session in ("b", "c")] == [[[1, 2], None]] * 2


async def test_sessions_that_say_so_share_a_process(tmp_path: Path) -> None:
    """With each other, and with no session that does not say so."""
    async with bench(tmp_path) as slot:
        shared = [value(await run_as(slot, session, PID, share_processes=True)) for session in ("a", "b")]
        assert shared[0] == shared[1]
        assert value(await run_as(slot, "a", PID)) != shared[0]


async def test_tasks_of_several_sessions_in_one_queue_keep_their_order(tmp_path: Path) -> None:
    """Each runs in its session's process."""
    async with bench(tmp_path) as slot:
        bundle, files = materialise(slot.root, {"task.py": PID})
        sessions = ["a", "a", "b", "a", "b", "b"]
        found: dict[int, Outcome] = {}
        executions = [slot.execution(bundle, "task.py", [], session) for session in sessions]
        await slot.run_many(executions, files, keep(found))
        assert list(found) == list(range(6))
        pids = {(session, value(found[index])) for index, session in enumerate(sessions)}
        assert len(pids) == len({pid for _, pid in pids}) == 2


async def test_the_least_recently_used_process_ends_when_memory_is_short(tmp_path: Path) -> None:
    """Without room, none is kept: the session begins anew."""
    async with bench(tmp_path, warm_memory=0) as slot:
        first = value(await run_as(slot, "a", PID))
        await run_as(slot, "b", PID)
        await eventually(lambda: not is_alive(first))
        assert value(await run_as(slot, "a", PID)) != first


async def test_a_kept_process_that_was_killed_is_replaced(tmp_path: Path) -> None:
    """Its session's next task runs in another one."""
    async with bench(tmp_path) as slot:
        first = value(await run_as(slot, "a", PID))
        await run_as(slot, "b", PID)
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: not is_alive(first))
        assert value(await run_as(slot, "a", PID)) != first


async def test_a_template_that_was_killed_is_started_again(tmp_path: Path) -> None:
    """Its children go on."""
    parent = "import os\ndef do_action(engine, args):\n    return [os.getpid(), os.getppid()]\n"
    async with bench(tmp_path) as slot:
        first, agent = value(await run_as(slot, "a", parent))
        assert agent == os.getpid()
        for template in _templates():
            os.kill(template, signal.SIGKILL)
        await eventually(lambda: not _templates())
        pids = [value(await run_as(slot, session, PID)) for session in ("a", "b", "c", "a")]
        assert pids[0] == pids[3] == first
        assert len(set(pids)) == 3


def _templates() -> list[int]:
    """The living templates of this process, known by the mark that only their children overwrite."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    stats = {pid: stat for pid in pids if (stat := read_stat(pid)) is not None}
    ours = [pid for pid, stat in stats.items() if stat.parent == os.getpid() and not stat.is_dead]
    return [pid for pid in ours if b"BATCHFLOW_SLOT=---" in Path(f"/proc/{pid}/environ").read_bytes()]


POISONS = """
import os
def do_action(engine, args):
    for folder in args:
        path = os.path.join(folder, 'victim.py')
        before = os.stat(path)
        os.chmod(path, 0o644)
        with open(path, 'r+') as file:
            text = file.read()
            file.seek(0)
            file.write(text.replace('victim', 'POISON'))
        os.chmod(path, before.st_mode)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
"""


async def test_a_task_cannot_change_the_files_of_another_session(tmp_path: Path) -> None:
    """Although it puts back their times. The next task of its own session finds them as they were, too."""
    async with bench(tmp_path) as slot:
        victim = "def do_action(engine, args):\n    return 'victim'\n"
        bundle, files = materialise(tmp_path, {"victim.py": victim, "poisons.py": POISONS})
        assert value(await slot.execute(slot.execution(bundle, "victim.py", [], "b"), files)) == "victim"
        await slot.execute(slot.execution(bundle, "poisons.py", ["."], "a"), files)
        for session in ("c", "b", "a"):
            assert (
                value(await slot.execute(slot.execution(bundle, "victim.py", [], session), files)) == "victim"
            )


LEAVES = """
import os, time
def do_action(engine, args):
    reader, writer = os.pipe()
    if not os.fork():
        os.setsid()
        if not os.fork():
            os.write(writer, str(os.getpid()).encode())
            time.sleep(300)
        os._exit(0)
    return int(os.read(reader, 20))
"""


async def test_a_fork_that_outlives_its_task_and_its_process_is_found(tmp_path: Path) -> None:
    """It has run no other program: the kernel shows the environment that the template began with."""
    async with bench(tmp_path) as slot:
        left = value(await run_as(slot, "a", LEAVES))
        await eventually(lambda: not is_alive(left))
        source = LEAVES.replace("    return int", "    print(int").replace("20))", "20)), flush=True)")
        dead = await run_as(slot, "a", source + "    os.kill(os.getpid(), 9)\n")
        assert dead.kind == "WorkerDied"
        await eventually(lambda: not is_alive(int(dead.stdout)))


async def test_children_end_with_their_agent(tmp_path: Path) -> None:
    """Also those that stand still, when the agent is killed."""
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from tests.support.slot_bench import bench\n"
        "from tests.unit.execution.test_slot_sessions import PID, run_as, value\n"
        "async def main():\n"
        "    async with bench(Path(sys.argv[1])) as slot:\n"
        "        pids = [value(await run_as(slot, session, PID)) for session in 'abc']\n"
        "        print(*pids, flush=True)\n"
        "        await asyncio.sleep(300)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in (await process.stdout.readline()).split()]
    assert all(map(is_alive, pids))
    process.kill()
    await process.wait()
    await eventually(lambda: not any(map(is_alive, pids)))
