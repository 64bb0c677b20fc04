"""What is measured: each case yields its figures."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from batchflow import Client, Session
from tests.benchmarks.harness import MEGABYTE, Figure, process_tree

HERE = Path(__file__).parent
TASKS = HERE / "tasks"
PI = HERE.parents[1] / "examples" / "02_pi" / "tasks"


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of everything."""

    processes: int
    """Fresh interpreters for what happens once in a process."""
    round_trips: int
    tasks: int
    """No-ops in a run."""
    runs: int
    cancellations: int
    pi_tasks: int
    pi_rounds: int


FULL = Effort(
    processes=7, round_trips=1000, tasks=5000, runs=3, cancellations=100, pi_tasks=1000, pi_rounds=3
)
QUICK = Effort(processes=2, round_trips=50, tasks=200, runs=1, cancellations=3, pi_tasks=20, pi_rounds=1)


def imports(effort: Effort) -> Iterator[Figure]:
    """What `import` costs in a fresh interpreter, and how many modules of azure it loads."""
    for statement in ("import batchflow", "from batchflow import Client"):
        code = (
            "import sys, time; start = time.perf_counter()\n"
            f"{statement}\n"
            "taken = time.perf_counter() - start\n"
            "print(taken, sum(name.partition('.')[0] == 'azure' for name in sys.modules))"
        )
        rows = [_python("-c", code).split() for _ in range(effort.processes)]
        yield Figure(statement, [float(row[0]) * 1e3 for row in rows], "ms")
        yield Figure(f"{statement}: modules of azure loaded", [float(row[1]) for row in rows], "")


def _python(*arguments: str) -> str:
    finished = subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return finished.stdout


def start(effort: Effort) -> Iterator[Figure]:
    """A program with `Client.local`, as a whole process, until its first result, and its phases."""
    wholes: list[float] = []
    phases: dict[str, list[float]] = {}
    for _ in range(effort.processes):
        whole, parts = _first_result()
        wholes.append(whole)
        for phase, taken in parts.items():
            phases.setdefault(phase, []).append(taken)
    yield Figure("Client.local: start of the program to its first result", wholes, "s")
    for phase, values in phases.items():
        yield Figure(f"  {phase}", values, "s")


def _first_result() -> tuple[float, dict[str, float]]:
    started = time.perf_counter()
    program = [sys.executable, str(HERE / "first_result.py")]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        taken = time.perf_counter() - started
    if process.returncode != 0:
        raise RuntimeError(f"{program[-1]} ended with exit code {process.returncode}")
    return taken, json.loads(line)


async def round_trip(session: Session, effort: Effort) -> AsyncIterator[Figure]:
    """A warm no-op at a time, from `run` to its value."""
    values = []
    for _ in range(effort.round_trips):
        started = time.perf_counter()
        await session.run("noop.py")
        values.append((time.perf_counter() - started) * 1e3)
    yield Figure("round trip of a warm no-op, one at a time", values, "ms")


async def lone_submit(session: Session, effort: Effort) -> AsyncIterator[Figure]:
    """A submit with nothing else under way: until it returns, and until the broker has the task."""
    returned, accepted = [], []
    for _ in range(max(1, effort.round_trips // 5)):
        started = time.perf_counter()
        task = await session.submit("noop.py")
        returned.append((time.perf_counter() - started) * 1e6)
        await task.accepted()
        accepted.append((time.perf_counter() - started) * 1e3)
        await task
    yield Figure("lone submit: until it returns", returned, "µs")
    yield Figure("lone submit: until the broker has accepted it", accepted, "ms")


async def cancellation(session: Session, effort: Effort) -> AsyncIterator[Figure]:
    """From `cancel()` having returned to the outcome, and to the end of the task's whole process tree."""
    told, dead = [], []
    events = session.events()
    for _ in range(effort.cancellations):
        task = await session.submit("tree.py")
        async for event in events:
            if event.kind == "log":
                break
        pids = [int(word) for word in event.message.split()]
        await task.cancel()
        started = time.perf_counter()
        while any(Path(f"/proc/{pid}").exists() for pid in pids):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        dead.append(time.perf_counter() - started)
        await task.outcome()
        told.append(time.perf_counter() - started)
    await events.aclose()
    yield Figure("cancelled: until the task's process tree is dead", dead, "s")
    yield Figure("cancelled: until its outcome is there", told, "s")


async def throughput(session: Session, effort: Effort) -> AsyncIterator[Figure]:
    """No-ops per second: through `map`, and one submitted after the other and then read."""
    rates = []
    for _ in range(effort.runs):
        started = time.perf_counter()
        count = 0
        async for result in session.map("noop.py", range(effort.tasks)):
            result.unwrap()
            count += 1
        rates.append(count / (time.perf_counter() - started))
    yield Figure(f"no-ops through map, {effort.tasks:,}", rates, "tasks/s")
    rates = []
    for _ in range(effort.runs):
        started = time.perf_counter()
        tasks = [await session.submit("noop.py") for _ in range(effort.tasks)]
        for task in tasks:
            await task
        rates.append(len(tasks) / (time.perf_counter() - started))
    yield Figure(f"no-ops submitted one by one, {effort.tasks:,}", rates, "tasks/s")


async def memory(session: Session, effort: Effort) -> AsyncIterator[Figure]:
    """What client, cloud, agents and their children hold after the work above."""
    processes = process_tree(os.getpid())
    resident, proportional = Counter[str](), Counter[str]()
    for process in processes:
        role = _role(process.pid, process.command)
        resident[role] += process.resident
        proportional[role] += process.proportional
    for role in sorted(resident):
        yield Figure(f"  resident: {role}", [resident[role] / MEGABYTE], "MB")
    yield Figure(f"resident, sum of {len(processes)} processes", [resident.total() / MEGABYTE], "MB")
    yield Figure("  shared pages counted once", [proportional.total() / MEGABYTE], "MB")


def _role(pid: int, command: str) -> str:
    if pid == os.getpid():
        return "client"
    module = re.search(r"(batchflow\.local|node_agent)[\w.]*", command)
    return module.group() if module else command.split(" ")[0].rpartition("/")[2]


async def pi(session: Session, effort: Effort) -> AsyncIterator[Figure]:
    """The jar's tasks against what `xargs -P2` needs for them, in alternation."""
    if shutil.which("java") is None:
        return
    xargs, ours = [], []
    for _ in range(effort.pi_rounds):
        xargs.append(await asyncio.to_thread(_xargs_pi, effort.pi_tasks))
        ours.append(await _pi(session, effort.pi_tasks))
    yield Figure(f"pi, {effort.pi_tasks:,} tasks: xargs -P2 java -jar", xargs, "s")
    yield Figure(f"pi, {effort.pi_tasks:,} tasks: batchflow, 2 nodes of 1 slot", ours, "s")
    yield Figure("  ratio in each round", [b / a for a, b in zip(xargs, ours, strict=True)], "")


def _xargs_pi(count: int) -> float:
    started = time.perf_counter()
    finished = subprocess.run(
        ["xargs", "-P2", "-I{}", "java", "-Xmx64m", "-jar", str(PI / "pi.jar"), "100"],
        input="\n".join(map(str, range(count))),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    taken = time.perf_counter() - started
    assert len(finished.stdout.split()) == count
    return taken


async def _pi(session: Session, count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        await session.submit("pi_runner.py", "java -Xmx64m -jar pi.jar 100")
    values = [float(result.unwrap()[0]) async for result in session.results()]
    assert len(values) == count
    return time.perf_counter() - started


ALONE = {"imports": imports, "start": start}
"""Cases that start processes of their own."""
WARM = {
    "round_trip": round_trip,
    "lone_submit": lone_submit,
    "cancellation": cancellation,
    "throughput": throughput,
    "memory": memory,
    "pi": pi,
}
"""Cases on one warm session."""


async def warm(names: list[str], effort: Effort) -> AsyncIterator[Figure]:
    """The named warm cases, on two local nodes of one slot each."""
    async with Client.local(nodes=2) as client:
        pool = await client.ensure_pool("bench", files=[TASKS, PI])
        async with pool.session() as session:
            await pool.wait_ready(2)
            async for result in session.map("noop.py", range(100)):
                result.unwrap()
            for name in names:
                async for figure in WARM[name](session, effort):
                    yield figure
