"""What a slot costs: `python tests/benchmarks/bench_slots.py [--tasks N] [--java N] [--switches N]`; only
prints.

CPU is that of this process and of the warm child together. The Java part runs one JVM a task on two slots
and compares with `xargs -P2` for the same commands; it is left out where there is no `javac`.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from node_agent.execution.outcomes import Execution, Outcome
from tests.support.slot_bench import BenchSlot, config, materialise, queue, value

NOOP = "def do_action(engine, args):\n    return None\n"
RUNNER = "def do_action(engine, args):\n    return engine.java_runner(args)\n"
JAVA = """
public class Pi {
    public static void main(String[] args) {
        java.util.Random random = new java.util.Random();
        int inside = 0, points = Integer.parseInt(args[0]);
        for (int i = 0; i < points; i++) {
            double x = random.nextDouble(), y = random.nextDouble();
            if (x * x + y * y <= 1) inside++;
        }
        System.out.println(4.0 * inside / points);
    }
}
"""
PACK = 50


def cpu(slot: BenchSlot) -> tuple[float, float]:
    """Seconds of CPU so far: of this process, of the slot's child."""
    with open(f"/proc/{slot.child_pid}/schedstat") as schedstat:
        return time.process_time(), int(schedstat.read().split()[0]) / 1e9


def execution(bundle: Any, command: str, args: list[Any], session: str = "client") -> Execution:
    return Execution("run:1", "1", session, "job", command, args, bundle, 1)


def new_slot(index: int, root: Path) -> BenchSlot:
    return BenchSlot.open(index, root, config(child_tasks=10**9), on_event=lambda _, __: None)


async def run(slot: BenchSlot, execution: Execution, files: Path) -> Outcome:
    """One task."""
    found: list[Outcome] = []
    await queue(slot, [execution], lambda _, outcomes: found.extend(outcomes)).run(execution.bundle, files)
    return found[0]


async def warm(root: Path, tasks: int) -> None:
    bundle, files = materialise(root, {"task.py": NOOP, "a.txt": "a", "b.txt": "b"})
    begun = time.perf_counter()
    slot = new_slot(0, root)
    await slot.ready()
    print(f"child ready after                {(time.perf_counter() - begun) * 1e3:8.1f} ms")
    one = execution(bundle, "task.py", [1, "two"])
    await run(slot, one, files)
    memory = Path(f"/proc/{slot.child_pid}/status").read_text().partition("VmRSS:")[2].split()[0]
    print(f"child's resident memory          {int(memory) / 1024:8.1f} MiB")
    begun, used = time.perf_counter(), cpu(slot)
    for _ in range(tasks):
        await run(slot, one, files)
    report("no-op, one by one", slot, tasks, begun, used)
    begun, used = time.perf_counter(), cpu(slot)
    for _ in range(tasks // PACK):
        await queue(slot, [one] * PACK, lambda _, __: None).run(bundle, files)
    report(f"no-op, packs of {PACK}", slot, tasks // PACK * PACK, begun, used)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"this process's peak memory       {grown / 1024:8.1f} MiB")
    await slot.aclose()


async def switch_times(root: Path, switches: int) -> dict[str, list[float]]:
    """Milliseconds from one session's task to the next one's outcome, in one slot."""
    bundle, files = materialise(root, {"task.py": NOOP})
    slot = new_slot(0, root)
    await slot.ready()
    names = {"two sessions that alternate": "ab" * (switches // 2), "new sessions": range(switches)}
    found = {}
    for name, sessions in names.items():
        times = []
        for session in map(str, sessions):
            begun = time.perf_counter()
            await run(slot, execution(bundle, "task.py", [], session), files)
            times.append((time.perf_counter() - begun) * 1e3)
        found[name] = times[2:]
    await slot.aclose()
    return found


async def switch(root: Path, switches: int) -> None:
    for name, times in (await switch_times(root, switches)).items():
        p50, p95 = (sorted(times)[int(len(times) * share)] for share in (0.5, 0.95))
        print(f"{name:28} p50 {p50:6.2f} ms, p95 {p95:6.2f} ms from a task to the next one's outcome")


def report(name: str, slot: BenchSlot, tasks: int, begun: float, used: tuple[float, float]) -> None:
    wall = (time.perf_counter() - begun) / tasks * 1e6
    ours, childs = ((now - before) / tasks * 1e6 for now, before in zip(cpu(slot), used, strict=True))
    print(f"{name:24} CPU {ours + childs:6.1f} µs a task (agent {ours:.1f}, child {childs:.1f}), ", end="")
    print(f"time {wall:.1f} µs")


def make_jar(folder: Path) -> Path:
    (folder / "Pi.java").write_text(JAVA)
    subprocess.run(["javac", "Pi.java"], cwd=folder, check=True)
    subprocess.run(["jar", "cfe", "pi.jar", "Pi", "Pi.class"], cwd=folder, check=True)
    return folder / "pi.jar"


async def java(root: Path, tasks: int) -> None:
    jar = make_jar(root)
    bundle, files = materialise(root, {"pi_runner.py": RUNNER, "pi.jar": jar.read_bytes()})
    command = ["java", "-Xmx64m", "-jar", "pi.jar", "100"]
    slots = [new_slot(index, root) for index in range(2)]
    one = execution(bundle, "pi_runner.py", command)
    left = iter(range(tasks))

    async def work(slot: BenchSlot) -> None:
        for _ in left:
            value(await run(slot, one, files))

    begun = time.perf_counter()
    await asyncio.gather(*(work(slot) for slot in slots))
    ours = time.perf_counter() - begun
    for slot in slots:
        await slot.aclose()
    begun = time.perf_counter()
    *options, points = command
    await asyncio.to_thread(
        subprocess.run,
        ["xargs", "-P2", "-n1", *options],
        input=f"{points}\n".encode() * tasks,
        cwd=root,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    theirs = time.perf_counter() - begun
    print(f"{tasks} JVMs by java_runner on 2 slots {ours:6.2f} s, by xargs -P2 {theirs:6.2f} s: ", end="")
    print(f"{ours / theirs:.3f}")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--java", type=int, default=100)
    parser.add_argument("--switches", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        await warm(Path(folder), options.tasks)
    with tempfile.TemporaryDirectory() as folder:
        await switch(Path(folder), options.switches)
    if options.java and shutil.which("javac"):
        with tempfile.TemporaryDirectory() as folder:
            await java(Path(folder), options.java)


if __name__ == "__main__":
    asyncio.run(main())
