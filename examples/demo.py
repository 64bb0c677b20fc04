"""A thousand Java tasks on two local nodes, with their results streaming back: the program of `make demo`.

The exit code is 1 unless every task gave one result and both nodes worked.
"""

import argparse
import asyncio
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from batchflow import Client, Result

TASKS = Path(__file__).parent / "02_pi" / "tasks"


@dataclass
class Tally:
    """The results that have arrived so far."""

    total: int
    started: float = field(default_factory=time.monotonic)
    task_ids: Counter[str] = field(default_factory=Counter)
    nodes: Counter[str] = field(default_factory=Counter)
    estimates: list[float] = field(default_factory=list)
    failures: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        self.task_ids[result.task_id] += 1
        self.nodes[result.node or "no node"] += 1
        if result.ok:
            self.estimates.append(float(result.value[0]))
        else:
            self.failures.append(result)

    @property
    def done(self) -> int:
        return self.task_ids.total()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    @property
    def pi(self) -> float:
        return sum(self.estimates) / len(self.estimates) if self.estimates else float("nan")

    @property
    def complete(self) -> bool:
        """Whether each task gave exactly one result, a good one, and more than one node worked."""
        distinct = len(self.task_ids) == self.total == self.done
        return distinct and not self.failures and len(self.nodes) > 1


def show_progress(tally: Tally) -> None:
    """Update one line on a terminal; elsewhere print a line for each tenth."""
    step = max(1, tally.total // 10)
    rate = tally.done / tally.elapsed
    line = f"{tally.done:5d} of {tally.total}  {rate:4.0f} tasks/s  pi is about {tally.pi:.4f}"
    if sys.stdout.isatty():
        print(f"\r{line}", end="\n" if tally.done == tally.total else "", flush=True)
    elif tally.done % step == 0 or tally.done == tally.total:
        print(line, flush=True)


def report(tally: Tally) -> None:
    print(f"{len(tally.task_ids):,} distinct results of {tally.total:,} tasks in {tally.elapsed:.1f} seconds")
    for node, count in sorted(tally.nodes.items()):
        print(f"  {count:5d} from {node}")
    print(f"pi is about {tally.pi:.4f}")
    for result in tally.failures[:5]:
        print(f"task {result.task_id} failed: {result.error}")
    if not tally.complete:
        print("NOT what was expected: one good result for each task, from two nodes")


async def main(config: str | None, total: int) -> Tally:
    print("Starting two local nodes and a Service Bus, a Batch and a Blob service for them ...", flush=True)
    async with Client.from_config(config) if config else Client.local(nodes=2) as client:
        pool = await client.ensure_pool("demo", files=TASKS)
        async with pool.session() as session:
            tally = Tally(total)
            for i in range(total):
                await session.submit("pi_runner.py", "java -Xmx64m -jar pi.jar 100", task_id=str(i))
            async for result in session.results():
                tally.add(result)
                show_progress(tally)
    report(tally)
    return tally


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", help="a configuration file; without one, two local nodes")
    parser.add_argument("--tasks", type=int, default=1000, metavar="N")
    options = parser.parse_args()
    if options.config is None and shutil.which("java") is None:
        sys.exit(
            "The demo's tasks are Java programs, and there is no `java` on the PATH.\n"
            "Install a Java runtime, 11 or newer (Debian and Ubuntu: apt install default-jre-headless)."
        )
    sys.exit(0 if asyncio.run(main(options.config, options.tasks)).complete else 1)
