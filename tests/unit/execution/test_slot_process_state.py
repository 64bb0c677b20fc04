"""What a task changes in its process, and what the next task of its session finds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.slot_bench import Bench, bench, materialise, value

LOOK = """
import asyncio, os, resource, signal, socket, sys, tempfile
def do_action(engine, args):
    limits = [resource.getrlimit(limit) for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)]
    timers = [signal.getitimer(timer)[0] for timer in (signal.ITIMER_REAL, signal.ITIMER_PROF)]
    files = [os.fstat(descriptor).st_ino for descriptor in range(3)]
    umask = os.umask(0)
    os.umask(umask)
    return [
        timers, [str(signal.getsignal(number)) for number in range(1, 64)],
        sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))), files, limits, umask,
        sorted(os.environ.items()), os.getcwd(), sys.getrecursionlimit(),
        type(asyncio.get_event_loop_policy()).__name__, socket.getdefaulttimeout(), sys.path,
        tempfile.gettempdir(),
    ]
"""
CHANGES = {
    "timer": "signal.alarm(100); signal.setitimer(signal.ITIMER_PROF, 100)",
    "handlers": "signal.signal(signal.SIGCHLD, signal.SIG_IGN); signal.signal(signal.SIGUSR1, print)",
    "mask": "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})",
    "closed descriptors": "[os.close(n) for n in range(3)]",
    "other descriptors": "os.dup2(os.open('/dev/null', os.O_RDWR), 1)",
    "limits": "resource.setrlimit(resource.RLIMIT_NOFILE, (12, 1000))",
    "umask": "os.umask(0o777)",
    "environment": "os.environ.pop('PATH'); os.environ['LEFT'] = 'x'",
    "another environment": "os.environ = {}",
    "directory": "os.chdir('/')",
    "recursion": "sys.setrecursionlimit(180)",
    "policy": "asyncio.set_event_loop_policy(type('Other', (asyncio.DefaultEventLoopPolicy,), {})())",
    "socket timeout": "socket.setdefaulttimeout(0.001)",
    "path": "sys.path.clear()",
    "temporary folder": "tempfile.tempdir = os.getcwd()",
    "hard limit": "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))",
}
HEAD = "import asyncio, os, resource, signal, socket, sys, tempfile\ndef do_action(engine, args):\n    "


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_what_a_task_changes_in_its_process_is_put_back(tmp_path: Path, change: str) -> None:
    """The next task of the session finds the process as it was, or another one where that is impossible."""
    async with bench(tmp_path) as slot:
        found = await run_all(
            slot, {"look.py": LOOK, "change.py": HEAD + change}, "look.py", "change.py", "look.py"
        )
    assert _comparable(found[0]) == _comparable(found[2])


def _comparable(found: list[Any]) -> list[Any]:
    """Without the numbers of pipes and the mark of the slot, which are those of one process."""
    found[3] = len(set(found[3]))
    found[6] = [item for item in found[6] if item[0] != "BATCHFLOW_SLOT"]
    return found


async def run_all(slot: Bench, files: dict[str, str], *commands: str) -> list[Any]:
    """Run tasks of one bundle, one after the other; their values."""
    bundle, folder = materialise(slot.root, files)
    return [value(await slot.execute(slot.execution(bundle, name, []), folder)) for name in commands]


async def test_what_an_import_changes_stays_as_long_as_its_module(tmp_path: Path) -> None:
    """The file's first lines run once: later tasks would miss what they did. Another bundle begins anew."""
    sets = "import os, sys\nsys.setrecursionlimit(5000)\nos.environ['SET'] = 'x'\nsys.path.append('/added')\n"
    look = (
        "def do_action(engine, args):\n"
        "    return [sys.getrecursionlimit(), os.environ.get('SET'), '/added' in sys.path]"
    )
    async with bench(tmp_path) as slot:
        files = {"task.py": sets + look, "change.py": HEAD + "os.environ.clear()"}
        assert await run_all(slot, files, "task.py", "change.py", "task.py") == [
            [5000, "x", True],
            None,
            [5000, "x", True],
        ]
        assert await run_all(slot, {"other.py": "import os, sys\n" + look}, "other.py") == [
            [1000, None, False]
        ]


async def test_a_child_that_changed_nothing_is_kept(tmp_path: Path) -> None:
    """Also after tasks that changed what can be put back."""
    async with bench(tmp_path) as slot:
        pid = HEAD + "os.umask(0); signal.alarm(50); return os.getpid()"
        assert len(set(await run_all(slot, {"pid.py": pid}, *["pid.py"] * 3))) == 1


async def test_an_alarm_that_a_task_forgot_does_not_end_the_next_one(tmp_path: Path) -> None:
    """Its time comes while the second task runs."""
    async with bench(tmp_path) as slot:
        files = {
            "first.py": HEAD + "signal.setitimer(signal.ITIMER_REAL, 0.05)",
            "second.py": "import time\ndef do_action(engine, args):\n    time.sleep(0.2)\n    return 2",
        }
        assert await run_all(slot, files, "first.py", "second.py") == [None, 2]


SHARES = """
from multiprocessing import get_context, shared_memory
def do_action(engine, args):
    memory = shared_memory.SharedMemory(create=True, size=10)
    memory.close()
    return memory.name
"""


async def test_helpers_of_multiprocessing_end_with_their_task(tmp_path: Path) -> None:
    """What they keep goes with them, and nobody waits for the end of what has ended."""
    async with bench(tmp_path) as slot:
        first, second = await run_all(slot, {"shares.py": SHARES}, "shares.py", "shares.py")
        assert not os.path.exists(f"/dev/shm/{first}")
        assert not os.path.exists(f"/dev/shm/{second}")
        pids = await run_all(slot, {"pid.py": HEAD + "return os.getpid()"}, "pid.py")
        assert pids == [slot.slot.child_pid]


async def test_the_fork_server_ends_with_its_task(tmp_path: Path) -> None:
    """The next task starts its own."""
    forks = (
        "import multiprocessing, os\n"
        "def do_action(engine, args):\n"
        "    context = multiprocessing.get_context('forkserver')\n"
        "    process = context.Process(target=os.getpid)\n"
        "    process.start()\n"
        "    process.join()\n"
        "    return process.exitcode\n"
    )
    async with bench(tmp_path) as slot:
        assert await run_all(slot, {"forks.py": forks}, "forks.py", "forks.py") == [0, 0]
