"""Time, memory, cancellation: the whole process tree ends, and the outcome says why."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from node_agent.execution.outcomes import Outcome
from node_agent.system import process_groups
from tests.support.slot_bench import Bench, bench, keep, materialise, value
from tests.support.waiting import BOUND, eventually

FINE = "def do_action(engine, args): return 'fine'"

HANGS = {
    "loop": "def do_action(engine, args):\n    while True: pass",
    "sleep": "import time\ndef do_action(engine, args): time.sleep(300)",
    "async": "import asyncio\nasync def do_action(engine, args): await asyncio.sleep(300)",
    "deaf": "import signal, time\ndef do_action(engine, args):\n"
    "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    time.sleep(300)",
    "catches all": "import time\ndef do_action(engine, args):\n    while True:\n"
    "        try:\n            time.sleep(300)\n        except BaseException:\n            pass",
    "import": "import time\ntime.sleep(300)",
    "subprocess": "import subprocess\ndef do_action(engine, args): subprocess.run(['sleep', '300'])",
    "other session": "import subprocess\ndef do_action(engine, args):\n"
    "    subprocess.run(['sh', '-c', 'trap \"\" TERM; sleep 300 & wait'], start_new_session=True)",
    "C code": "import ctypes\ndef do_action(engine, args): ctypes.PyDLL(None).sleep(300)",
}


@pytest.mark.parametrize("source", HANGS.values(), ids=HANGS.keys())
async def test_a_task_that_hangs_is_ended_at_its_limit(tmp_path: Path, source: str) -> None:
    """However it hangs: limit and time used are named, nothing is left, the slot goes on."""
    async with bench(tmp_path, grace=0.3) as slot:
        await slot.slot.ready()
        child = slot.slot.child_pid
        assert child is not None
        outcome = await slot.python(source, timeout=0.2)
        assert outcome.kind == "TaskTimeout"
        assert (outcome.error or "").startswith("the task's limit is 0.2 s; it was ended after 0.")
        assert process_groups.family(process_groups.table(), {child}) == set()
        assert value(await slot.python(FINE)) == "fine"


async def test_a_task_may_clean_up_when_it_is_told_to_end(tmp_path: Path) -> None:
    """`finally` runs in sync and in async code, and what it leaves and prints is kept."""
    source = """
import asyncio, time
def ending():
    open('outputs/state', 'w').write('saved')
    print('cleaned up')
%s
    try:
        %s
    finally:
        ending()
"""
    ways = [
        ("def do_action(engine, args):", "time.sleep(300)"),
        ("async def do_action(engine, args):", "await asyncio.sleep(300)"),
    ]
    async with bench(tmp_path, grace=10.0) as slot:
        for head, wait in ways:
            outcome = await slot.python(source % (head, wait), timeout=0.1)
            assert outcome.kind == "TaskTimeout"
            assert outcome.stdout == "cleaned up\n"
            assert outcome.outputs[0].read_text() == "saved"


async def test_engine_cancelled_is_true_before_a_task_is_ended(tmp_path: Path) -> None:
    """`engine.cancelled` turns true before any signal comes."""
    source = """
import signal
def do_action(engine, args):
    signal.signal(signal.SIGTERM, lambda *_: print('signal'))
    while not engine.cancelled: pass
    print('saw it')
"""
    async with bench(tmp_path, grace=10.0) as slot:
        outcome = await slot.python(source, timeout=0.1)
        assert (outcome.kind, outcome.stdout) == ("TaskTimeout", "saw it\n")
        assert value(await slot.python("def do_action(engine, args): return engine.cancelled")) is False


async def test_a_task_within_its_limit_does_not_notice_it(tmp_path: Path) -> None:
    """Neither of the limits."""
    async with bench(tmp_path) as slot:
        outcome = await slot.python(FINE, timeout=100.0, memory_limit=2**30)
        assert value(outcome) == "fine"
        assert value(await slot.python(FINE)) == "fine"


async def started(slot: Bench, source: str) -> asyncio.Task[object]:
    """A task that has logged something, and runs on."""
    bundle, files = materialise(slot.root, {"task.py": source})
    running = asyncio.create_task(slot.execute(slot.execution(bundle, "task.py", []), files))
    await eventually(lambda: slot.messages("log"))
    return running


TREE = """
import signal, subprocess, time
def do_action(engine, args):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(['sh', '-c', 'trap "" TERM; setsid sleep 300 & sleep 300'])
    engine.log('runs')
    time.sleep(300)
"""


async def test_cancelling_run_kills_the_whole_tree_before_it_raises(tmp_path: Path) -> None:
    """Within two seconds, also of processes that ignore SIGTERM; nothing of the task is kept."""
    async with bench(tmp_path, grace=100.0) as slot:
        running = await started(slot, TREE)
        child = slot.slot.child_pid
        assert child is not None
        begun = time.monotonic()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert time.monotonic() - begun < BOUND
        assert process_groups.family(process_groups.table(), {child}) == set()
        assert value(await slot.python(FINE)) == "fine"


async def test_a_cancelled_pack_ends_where_it_is(tmp_path: Path) -> None:
    """What had ended was told; what had not begun never begins."""
    source = """
def do_action(engine, args):
    if args[0] == 1:
        engine.log('runs')
        while not engine.cancelled: pass
    open(args[1], 'a').write(str(args[0]))
"""
    async with bench(tmp_path) as slot:
        bundle, files = materialise(tmp_path, {"task.py": source})
        seen = tmp_path / "seen"
        tasks = [slot.execution(bundle, "task.py", [number, str(seen)]) for number in range(4)]
        told: dict[int, Outcome] = {}
        running = asyncio.create_task(slot.run_many(tasks, files, keep(told)))
        await eventually(lambda: slot.messages("log"))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert list(told) == [0]
        assert seen.read_text()[0] == "0"
        assert "2" not in seen.read_text()[2:]
        assert value(await slot.python(FINE)) == "fine"


@pytest.mark.parametrize(
    "source",
    [
        "def do_action(engine, args):\n    x = []\n    while True: x.append(b'x' * 2**20)",
        "def do_action(engine, args): bytearray(2**40)",
        "import subprocess, sys\ndef do_action(engine, args):\n    subprocess.run([sys.executable, '-c',"
        " 'x = []\\nwhile True: x.append(b\"x\" * 2**20)'])",
    ],
    ids=["bit by bit", "at once", "in a subprocess"],
)
async def test_memory_above_the_limit_ends_the_task_as_out_of_memory(tmp_path: Path, source: str) -> None:
    """By Python's own refusal or by killing, the subprocesses' memory included."""
    async with bench(tmp_path) as slot:
        outcome = await slot.python(source, memory_limit=150 * 2**20, timeout=BOUND)
        assert outcome.kind == "TaskOutOfMemory"
        assert "limit" in (outcome.error or "")
        assert value(await slot.python(FINE)) == "fine"


async def test_memory_that_an_earlier_task_kept_is_not_counted(tmp_path: Path) -> None:
    """A task with a limit gets a child that has room."""
    hoard = "kept = []\ndef do_action(engine, args): kept.append(b'x' * (80 * 2**20))"
    async with bench(tmp_path) as slot:
        value(await slot.python(hoard))
        assert value(await slot.python(FINE, memory_limit=80 * 2**20)) == "fine"


async def test_a_limit_does_not_outlive_its_task(tmp_path: Path) -> None:
    """The next one in the same child may ask for more."""
    source = "import mmap\ndef do_action(engine, args): return len(mmap.mmap(-1, args[0], mmap.MAP_PRIVATE))"
    async with bench(tmp_path) as slot:
        assert value(await slot.python(source, 1, memory_limit=100 * 2**20)) == 1
        child = slot.slot.child_pid
        assert value(await slot.python(source, 700 * 2**20)) == 700 * 2**20
        assert slot.slot.child_pid == child
