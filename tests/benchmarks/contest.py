"""batchflow and its peers, one after another, round for round, on the same workloads.

In each round every contender is started, timed to its first result, given all workloads, weighed and ended,
so that nobody's idle processes disturb anybody else. The order moves on by one from round to round.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import AT_REST, SETTLED, percentile, until_quiet
from tests.benchmarks.process import CONTENDERS, OWN_PYTHON, PEERS, ContenderProcess, Failed
from tests.benchmarks.servers import SERVERS, Missing

START_SECONDS = 90.0
WORKLOAD_SECONDS = 120.0
WORKERS = 2


@dataclass(frozen=True, slots=True)
class Entrant:
    """Who takes part."""

    name: str
    program: str
    module: str
    """What must be importable, so that it counts as installed."""
    server: str = ""
    is_own: bool = False
    """Whether it runs in this very environment; the peers have one of their own."""

    @property
    def python(self) -> Path:
        return OWN_PYTHON if self.is_own else PEERS

    @property
    def installed(self) -> bool:
        if not self.python.exists():
            return False
        return (
            subprocess.run([self.python, "-c", f"import {self.module}"], capture_output=True).returncode == 0
        )


OURS = "batchflow"
LIMIT = "ProcessPoolExecutor"
PLAIN = "two plain processes"
ENTRANTS = (
    Entrant(OURS, "on_batchflow.py", "batchflow", is_own=True),
    Entrant("saq", "on_saq.py", "saq", "redis"),
    Entrant("Ray", "on_ray.py", "ray"),
    Entrant("taskiq (list)", "on_taskiq.py", "taskiq_redis", "redis"),
    Entrant("Parsl HTEX", "on_parsl.py", "parsl"),
    Entrant("Celery, RabbitMQ, acks late", "on_celery.py", "celery", "rabbitmq"),
    Entrant("arq", "on_arq.py", "arq", "redis"),
    Entrant("Dask", "on_dask.py", "distributed"),
    Entrant("Celery, Redis, acks late", "on_celery.py", "celery", "redis"),
    Entrant("ipyparallel", "on_ipyparallel.py", "ipyparallel"),
    Entrant(LIMIT, "on_executor.py", "concurrent.futures", is_own=True),
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many tasks each workload has."""

    bulk: int
    one_by_one: int
    round_trip: int
    spin: int
    nap: int
    echo: int
    patience: float
    """Seconds that a turn waits at most for a quiet machine."""


FULL = Sizes(bulk=5000, one_by_one=5000, round_trip=1000, spin=2000, nap=1000, echo=200, patience=20.0)
QUICK = Sizes(bulk=200, one_by_one=200, round_trip=50, spin=100, nap=100, echo=10, patience=0.0)


@dataclass(frozen=True, slots=True)
class Record:
    """One thing measured of one contender in one round."""

    round: int
    contender: str
    quantity: str
    value: float
    at: float
    """Seconds since the epoch."""


def chosen(words: Sequence[str]) -> list[Entrant]:
    """Ours, and those whose names contain one of these words; all, without any."""
    return [
        entrant
        for entrant in ENTRANTS
        if not words
        or entrant.name == OURS
        or any(word.casefold() in entrant.name.casefold() for word in words)
    ]


def rounds(entrants: Sequence[Entrant], sizes: Sizes, numbers: Sequence[int]) -> Iterator[Record | str]:
    """Records as they come, and what could not be measured, in words."""
    present = [entrant for entrant in entrants if entrant.installed]
    yield from (f"{entrant.name}: not installed" for entrant in entrants if entrant not in present)
    if not present:
        return
    for number in numbers:
        until_quiet(sizes.patience)
        for quantity, value in _plain(sizes):
            yield Record(number, PLAIN, quantity, value, time.time())
        first = number % len(present)
        for entrant in present[first:] + present[:first]:
            yield Record(number, entrant.name, "busy", until_quiet(sizes.patience), time.time())
            try:
                for quantity, value in _turn(entrant, sizes):
                    yield Record(number, entrant.name, quantity, value, time.time())
            except (Failed, Missing) as error:
                yield f"{entrant.name}, round {number}: {error}"


def _turn(entrant: Entrant, sizes: Sizes) -> Iterator[tuple[str, float]]:
    """One contender's round."""
    with (
        SERVERS[entrant.server]() as server,
        ContenderProcess(entrant.program, entrant.python, server) as contender,
    ):
        yield "start", contender.start(START_SECONDS)
        contender.measure(
            "bulk", max(1, sizes.bulk // 10), WORKLOAD_SECONDS
        )  # warm, like a service that runs
        time.sleep(SETTLED)
        for workload in ("bulk", "one_by_one", "round_trip", "spin", "nap", "echo"):
            count = getattr(sizes, workload)
            yield from _quantities(workload, count, contender.measure(workload, count, WORKLOAD_SECONDS))
        time.sleep(AT_REST)
        yield "memory", contender.resident()


def _plain(sizes: Sizes) -> Iterator[tuple[str, float]]:
    """What two processes do that just call the task in a loop."""
    for workload in ("spin", "nap"):
        count = max(1, getattr(sizes, workload) // WORKERS)
        command = [OWN_PYTHON, CONTENDERS / "plain.py", workload, str(count)]
        loops = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(WORKERS)]
        yield workload, WORKERS * count / max(float(loop.communicate()[0]) for loop in loops)


def _quantities(workload: str, count: int, value: Any) -> Iterator[tuple[str, float]]:
    match workload:
        case "round_trip":
            milliseconds = sorted(seconds * 1e3 for seconds in value)
            yield "p50", percentile(milliseconds, 0.50)
            yield "p99", percentile(milliseconds, 0.99)
        case _:
            yield workload, count / value
