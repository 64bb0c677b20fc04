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
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from batchflow import Client, Session
from batchflow.local.usage import operations as counted_operations
from tests.benchmarks import own_code
from tests.benchmarks.durability import outstanding, recovery
from tests.benchmarks.floor import sdk
from tests.benchmarks.harness import AT_REST, MEGABYTE, Figure, process_tree
from tests.benchmarks.scale import cases as scale
from tests.benchmarks.sharing import sharing
from tests.benchmarks.workflows import workflows
from tests.support.session_parts import parts_of

HERE = Path(__file__).parent
TASKS = HERE / "tasks"
WORK = HERE / "contenders" / "work.py"
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
    many: int
    """No-ops in a run of many."""
    long: float
    """Seconds of the task that no other waits for."""
    latencies: tuple[float, ...]
    """Seconds that each answer of the services takes."""
    large: int
    """Values of 100 KB."""
    arrays: int
    """Arrays of 1 MB."""
    large_array: int
    """Bytes of the large array."""
    numpy_calls: int
    """Calls of 5 ms."""
    before: Path | None = None
    """Another checkout, to measure beside this one."""


FULL = Effort(
    processes=7,
    round_trips=1000,
    tasks=5000,
    runs=3,
    cancellations=100,
    pi_tasks=1000,
    pi_rounds=3,
    many=100_000,
    long=20.0,
    latencies=(0.0, 0.02),
    large=200,
    arrays=200,
    large_array=100_000_000,
    numpy_calls=2000,
)
QUICK = Effort(
    processes=1,
    round_trips=20,
    tasks=200,
    runs=1,
    cancellations=2,
    pi_tasks=20,
    pi_rounds=1,
    many=500,
    long=1.0,
    latencies=(0.02,),
    large=10,
    arrays=4,
    large_array=2_000_000,
    numpy_calls=10,
)


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
    yield Figure("Client.local: start of the program to its first result", wholes, "s", at_most=1.2)
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
    rates = [effort.tasks / await _through_map(session, effort.tasks) for _ in range(effort.runs)]
    yield Figure(f"no-ops through map, {effort.tasks:,}", rates, "tasks/s")
    rates = []
    for _ in range(effort.runs):
        started = time.perf_counter()
        tasks = [await session.submit("noop.py") for _ in range(effort.tasks)]
        for task in tasks:
            await task
        rates.append(len(tasks) / (time.perf_counter() - started))
    yield Figure(f"no-ops submitted one by one, {effort.tasks:,}", rates, "tasks/s")


async def _through_map(session: Session, count: int, command: str = "noop.py") -> float:
    """Seconds until the last result is there."""
    started = time.perf_counter()
    async for result in session.map(command, range(count)):
        result.unwrap()
        count -= 1
    assert count == 0
    return time.perf_counter() - started


async def operations(session: Session, effort: Effort) -> AsyncIterator[Figure]:
    """What Service Bus would charge for a no-op, of client and agents together, as the local cloud counts."""

    async def charged(work: Awaitable[object], tasks: int) -> tuple[float, float, float]:
        before, ours = await counted_operations(settings), session.stats
        await work
        total = await counted_operations(settings) - before
        clients = session.stats.broker_operations - ours.broker_operations
        return total.billed / tasks, total.credits / tasks, clients / tasks

    settings = parts_of(session).context.runtime.settings
    alone = max(1, effort.round_trips // 5)
    for name, work, tasks, goal in (
        ("under load", _through_map(session, effort.tasks), effort.tasks, 0.2),
        ("alone", _round_trips(session, alone), alone, 5.0),
    ):
        billed, limited, clients = await charged(work, tasks)
        yield Figure(f"credits of a no-op {name}", [limited], "", at_most=goal)
        yield Figure(f"billed operations of a no-op {name}", [billed], "", at_most=goal)
        yield Figure("  of these the client's, by session.stats", [clients], "")
    yield Figure("credits of a task of 1 ms", [(await charged(_spins(session), 1000))[1]], "")


async def _round_trips(session: Session, count: int) -> None:
    for _ in range(count):
        await session.run("noop.py")


async def _spins(session: Session) -> None:
    await _through_map(session, 1000, "spin.py")


async def many(session: Session, effort: Effort) -> AsyncIterator[Figure]:
    """Whether the rate holds: each run of many between two of the usual number."""
    ratios, rates = [], []
    for _ in range(effort.runs):
        few = [effort.tasks / await _through_map(session, effort.tasks)]
        rates.append(effort.many / await _through_map(session, effort.many))
        few.append(effort.tasks / await _through_map(session, effort.tasks))
        ratios.append(2 * rates[-1] / sum(few))
    yield Figure(f"no-ops through map, {effort.many:,}", rates, "tasks/s")
    yield Figure(f"  of the rate of {effort.tasks:,}, before and after", ratios, "", at_least=0.9)


async def long(session: Session, effort: Effort) -> AsyncIterator[Figure]:
    """One long task among no-ops: how long these take, and how many are still out when it has ended."""
    without, beside, late = [], [], []
    for _ in range(effort.runs):
        without.append(await _among(session, effort.tasks, None))
        started = time.perf_counter()
        beside.append(await _among(session, effort.tasks, effort.long))
        late.append(float(time.perf_counter() - started >= effort.long))
    yield Figure(f"{effort.tasks:,} no-ops until the last result", without, "s")
    yield Figure(f"  with a task of {effort.long:.0f} s in their midst", beside, "s")
    yield Figure("  runs in which a no-op waited for it", [sum(late)], "", at_most=0.0)


async def _among(session: Session, count: int, seconds: float | None) -> float:
    """Seconds until the last no-op is there; the long task is cancelled then."""
    started = time.perf_counter()
    tasks = await session.submit_many("noop.py", range(count // 2))
    long = None if seconds is None else await session.submit("sleep.py", args=[seconds])
    tasks += await session.submit_many("noop.py", range(count - count // 2))
    for task in tasks:
        await task
    taken = time.perf_counter() - started
    if long is not None:
        await long.cancel()
        await long.outcome()
    return taken


async def memory(session: Session, effort: Effort) -> AsyncIterator[Figure]:
    """What client, cloud, agents and their children hold at rest after the work above."""
    await asyncio.sleep(AT_REST)
    processes = process_tree(os.getpid())
    resident, proportional = Counter[str](), Counter[str]()
    for process in processes:
        role = _role(process.pid, process.command)
        resident[role] += process.resident
        proportional[role] += process.proportional
    for role in sorted(resident):
        yield Figure(f"  resident: {role}", [resident[role] / MEGABYTE], "MB")
    total = [resident.total() / MEGABYTE]
    yield Figure(f"resident, sum of {len(processes)} processes", total, "MB", at_most=350.0)
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
    ratios = [theirs / own for theirs, own in zip(xargs, ours, strict=True)]
    yield Figure("  of its speed, in each round", ratios, "", at_least=0.95)


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


def latency(effort: Effort) -> Iterator[Figure]:
    """The same work where every answer of the services takes its time: a broker far away."""
    for seconds in effort.latencies:
        yield from asyncio.run(_with_latency(seconds, effort))


async def _with_latency(seconds: float, effort: Effort) -> list[Figure]:
    name = f"latency {seconds * 1e3:.0f} ms"
    async with bench_session(latency=seconds) as session:
        trips = []
        for _ in range(effort.round_trips // 10):
            started = time.perf_counter()
            await session.run("noop.py")
            trips.append((time.perf_counter() - started) * 1e3)
        noops = [effort.tasks / await _through_map(session, effort.tasks) for _ in range(effort.runs)]
        spins = [1000 / await _through_map(session, 1000, "spin.py") for _ in range(effort.runs)]
    return [
        Figure(f"{name}: round trip", trips, "ms"),
        Figure(f"{name}: no-ops through map, {effort.tasks:,}", noops, "tasks/s"),
        Figure(f"{name}: tasks of 1 ms through map, 1,000", spins, "tasks/s"),
    ]


ALONE = {
    "imports": imports,
    "start": start,
    "sdk": sdk,
    "arrays": own_code.arrays,
    "packages": own_code.packages,
    "latency": latency,
    "outstanding": outstanding,
    "recovery": recovery,
    "idle": scale.idle,
    "sessions": scale.sessions,
    "switch": scale.switch,
    "nodes": scale.nodes,
    "sharing": sharing,
    "workflows": workflows,
}
"""Cases that start processes of their own."""
WARM = {
    "round_trip": round_trip,
    "lone_submit": lone_submit,
    "cancellation": cancellation,
    "throughput": throughput,
    "functions": own_code.functions,
    "numpy": own_code.numpy_calls,
    "operations": operations,
    "long": long,
    "memory": memory,
    "many": many,
    "pi": pi,
}
"""Cases on one warm session."""


@asynccontextmanager
async def bench_session(latency: float = 0.0) -> AsyncIterator[Session]:
    """A warm session on two local nodes of one slot each."""
    async with Client.local(nodes=2, latency=latency) as client:
        pool = await client.ensure_pool("bench", files=[TASKS, WORK, PI])
        async with pool.session() as session:
            await pool.wait_ready(2)
            await _through_map(session, 100)
            yield session


async def warm(names: list[str], effort: Effort) -> AsyncIterator[Figure]:
    """The named warm cases, on one session."""
    async with bench_session() as session:
        for name in names:
            async for figure in WARM[name](session, effort):
                yield figure
