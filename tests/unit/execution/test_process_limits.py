"""Fork bombs without any bound of their own: told as what they were, nothing of them left, the others go on.

The tests bound them from outside, so that a failure here does not take the machine: by a cgroup where one can
be made, by RLIMIT_NPROC where the kernel heeds it, and each process by a timer of its own.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from batchflow.support import linux
from node_agent.execution import process_limits
from node_agent.execution.process_limits import most_processes
from node_agent.execution.program import Program
from node_agent.system import process_groups
from tests.support.slot_bench import Bench, bench, value
from tests.support.waiting import eventually

FINE = "def do_action(engine, args): return 'fine'"
LIMIT = 100
MOST = 300
"""What the fence lets through: far more than the agent does."""
_GROUPS = (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))


class Fence:
    """Keeps a process and all that it starts from having more than `MOST` processes."""

    def __init__(self, group: Path | None) -> None:
        self._group = group

    def around(self, pid: int) -> None:
        if self._group is None:
            resource.prlimit(pid, resource.RLIMIT_NPROC, (process_groups.of_user() + MOST,) * 2)
        else:
            (self._group / "cgroup.procs").write_text(str(pid))

    @property
    def enter(self) -> str:
        """The line of a shell by which it is fenced in."""
        if self._group is None:
            return f"ulimit -u {process_groups.of_user() + MOST}\n"
        return f"echo $$ > {self._group}/cgroup.procs\n"

    def inside(self) -> set[str]:
        """The processes that are in it, where that can be told."""
        return set() if self._group is None else set((self._group / "cgroup.procs").read_text().split())


def _make_group() -> Path | None:
    for parent in _GROUPS:
        group = parent / f"batchflow-test-{os.getpid()}"
        try:
            group.mkdir()
            (group / "pids.max").write_text(str(MOST))
        except OSError:
            if group.is_dir():
                group.rmdir()
            continue
        return group
    return None


@pytest.fixture
def fence() -> Iterator[Fence]:
    """For one bomb at a time on this machine. Skips where a bomb cannot be fenced."""
    group = _make_group()
    if group is None and os.geteuid() == 0:
        pytest.skip("no cgroup can be made, and the kernel does not bound root's processes")
    with Path(tempfile.gettempdir(), "batchflow-fork-bomb.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Fence(group)
    if group is not None:
        group.rmdir()


SHELL = """
import subprocess
def do_action(engine, args):
    while True:
        try:
            subprocess.run(['sh', '-c', %r])
        except OSError:
            pass
"""
PYTHON = """
import os, signal
def do_action(engine, args):
    signal.alarm(20)
    while True:
        try:
            if os.fork() == 0:
                signal.alarm(20)
        except OSError:
            pass
"""
THREADS = """
import threading
def do_action(engine, args):
    while True:
        try:
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        except RuntimeError:
            pass
"""
THE_DEAD = """
import os, time
def do_action(engine, args):
    while True:
        try:
            if os.fork() == 0:
                os._exit(0)
        except OSError:
            time.sleep(0.1)
"""
LEAVING = (
    "echo 'setsid sh ./bomb & setsid sh ./bomb & setsid sh ./bomb & sleep 5' > bomb; sh ./bomb; sleep 60"
)
BOMBS = {
    "the classic": SHELL % "f() { f | f & }; f; sleep 60",
    "all wait": SHELL % "f() { f | f; }; f",
    "sessions of their own": SHELL % LEAVING,
    "forks of Python": PYTHON,
    "threads": THREADS,
    "the dead": THE_DEAD,
}


async def fenced(slot: Bench, fence: Fence) -> Bench:
    """The slot's child, and so all that it starts, is fenced in."""
    await slot.slot.ready()
    child = slot.slot.child_pid
    assert child is not None
    fence.around(child)
    return slot


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS.keys())
async def test_a_task_that_multiplies_without_end_is_ended(tmp_path: Path, fence: Fence, source: str) -> None:
    """It is reported as what it was, no process survives, and its slot and the other one go on."""
    async with bench(tmp_path / "a", process_limit=LIMIT) as bad, bench(tmp_path / "b") as good:
        bomb = asyncio.create_task((await fenced(bad, fence)).python(source))
        while not bomb.done():
            assert value(await good.python(FINE)) == "fine"
        outcome = await bomb
        assert outcome.kind == "TaskTooManyProcesses", outcome
        assert "the limit is 100 (setting: agent.process_limit)" in (outcome.error or "")
        await eventually(lambda: not fence.inside())
        assert value(await bad.python(FINE)) == value(await good.python(FINE)) == "fine"


async def test_an_executable_that_multiplies_is_ended(tmp_path: Path, fence: Fence) -> None:
    """As a task by itself, in no child."""
    script = f"#!/bin/bash\n{fence.enter}f() {{ f | f & }}; while :; do f; done\n"
    async with bench(tmp_path, process_limit=LIMIT) as slot:
        outcome = await slot.run({"bomb.sh": script}, "bomb.sh")
        assert outcome.kind == "TaskTooManyProcesses", outcome
        await eventually(lambda: not fence.inside())
        assert value(await slot.python(FINE)) == "fine"


async def test_a_bomb_below_the_limit_is_ended_by_its_time(tmp_path: Path, fence: Fence) -> None:
    """Without a limit the timeout is what there is: the kernel's bound keeps the agent able to act."""
    async with bench(tmp_path, process_limit=0) as slot:
        outcome = await (await fenced(slot, fence)).python(BOMBS["the classic"], timeout=0.5)
        assert outcome.kind == "TaskTimeout"
        await eventually(lambda: not fence.inside())
        assert value(await slot.python(FINE)) == "fine"


async def test_the_kernel_bounds_what_is_quicker_than_any_look(tmp_path: Path) -> None:
    """A program that is not root's gets no more processes than it was given."""
    script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 300 & done; echo all"
    most = 5
    if os.geteuid() == 0:
        change = f"exec setpriv --reuid=64999 --clear-groups sh -c '{script}'"
        script = f"until [ $(ulimit -u) = {most} ]; do sleep 0.01; done; {change}"
    else:
        most += process_groups.of_user()
    program = Program(("/bin/bash", "-c", script), cwd=tmp_path, env={}, most_processes=most)
    ended = await program.run()
    assert "all" not in ended.stdout.text()
    assert ended.stderr.text()
    await process_groups.kill(lambda: process_groups.left_behind(ended.pid, "none"))


def test_the_kernels_bound_is_for_all_slots_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """No task is kept from what is its own by the others; root, whom it does not bind, gets none."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(process_groups, "of_user", lambda: 70)
    assert most_processes(limit=500, slots=4) == 2070
    assert most_processes(limit=0, slots=4) is None
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert most_processes(limit=500, slots=4) is None


class Slot:
    """What a process limiter counts."""

    def __init__(self, population: int) -> None:
        self.is_running = True
        self.looks = 0
        """How often the limiter looked whether something runs here."""
        self.population = population
        self.counted = 0
        self.moves: list[str] = []

    @property
    def running(self) -> bool:
        self.looks += 1
        return self.is_running

    def count(self, entries: Mapping[int, linux.ProcessStat]) -> int:
        self.counted += 1
        return self.population

    def freeze(self) -> None:
        self.moves.append("freeze")

    def thaw(self) -> None:
        self.moves.append("thaw")


async def test_tasks_are_counted_only_when_the_node_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    """By as much as the largest of them was short of the limit; and never while no task runs."""
    on_node = 1000
    looks = 0

    def look() -> tuple[int, int]:
        nonlocal looks
        looks += 1
        return 1, on_node

    async def looked(times: int) -> None:
        target = looks + times
        await eventually(lambda: looks >= target)

    monkeypatch.setattr(process_groups, "on_node", look)
    monkeypatch.setattr(process_limits, "INTERVAL", 0.001)
    small, large = Slot(10), Slot(60)
    counting = process_limits.ProcessLimiter(100)
    counting.join(small)
    counting.join(large)
    counting.wake()
    await eventually(lambda: large.counted == 1)
    on_node += 39
    await looked(5)
    assert (small.counted, large.counted) == (1, 1)
    on_node += 1
    await eventually(lambda: small.counted == 2)
    small.is_running = large.is_running = False
    before = large.looks
    await eventually(lambda: large.looks > before)
    small.is_running = True
    counting.leave(small)
    before = large.looks
    counting.wake()
    await eventually(lambda: large.looks > before)
    assert (small.counted, large.counted) == (2, 2)


async def test_a_task_that_grows_while_others_go_is_found_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks are counted every few seconds in any case."""
    monkeypatch.setattr(process_groups, "on_node", lambda: (1, 1000))
    monkeypatch.setattr(process_limits, "INTERVAL", 0.001)
    monkeypatch.setattr(process_limits, "LONGEST", 0.01)
    slot = Slot(10)
    counting = process_limits.ProcessLimiter(100)
    counting.join(slot)
    counting.wake()
    await eventually(lambda: slot.counted > 3)
    counting.leave(slot)


async def test_tasks_stand_still_while_a_crowd_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those within the limit go on at once; what is above it does not move again."""
    monkeypatch.setattr(process_groups, "on_node", lambda: (10_000, 20_000))
    slot, bomb = Slot(10), Slot(101)
    counting = process_limits.ProcessLimiter(100)
    counting.join(slot)
    counting.join(bomb)
    counting.wake()
    await eventually(lambda: bomb.counted)
    assert (slot.moves, bomb.moves) == (["freeze", "thaw"], ["freeze"])
    counting.leave(slot)
    counting.leave(bomb)


async def test_a_task_that_stood_still_goes_on(tmp_path: Path) -> None:
    """As if nothing had been."""
    source = "import time\ndef do_action(engine, args):\n    engine.log('runs')\n    return 'fine'"
    async with bench(tmp_path) as slot:
        await slot.slot.ready()
        slot.slot.freeze()
        running = asyncio.create_task(slot.python(source))
        child = slot.slot.child_pid
        assert child is not None
        await eventually(lambda: linux.process_table()[child].state == b"T")
        slot.slot.thaw()
        assert value(await running) == "fine"
