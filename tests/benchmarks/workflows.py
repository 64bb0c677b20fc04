"""What it costs that tasks wait for others: beside the same tasks that do not, and beside Dask and Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.benchmarks.contest import ENTRANTS, OURS
from tests.benchmarks.harness import SETTLED, Figure
from tests.benchmarks.process import ROOT, ContenderProcess
from tests.benchmarks.servers import SERVERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.benchmarks.cases import Effort
    from tests.benchmarks.contest import Entrant

PATIENCE: Final = 120.0


def workflows(effort: Effort) -> Iterator[Figure]:
    """A chain, a tree, and tasks that wait."""
    names = (OURS, "Dask", "Ray")
    for entrant in ENTRANTS:
        if entrant.name in names and entrant.installed:
            yield from _beside_each_other(entrant, effort)
    number = 20 * effort.tasks
    program = [sys.executable, str(Path(__file__).parent / "dependents.py"), str(number)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    memory, taken = json.loads(finished.stdout)
    yield Figure(f"memory of a waiting task, {number:,} on one client", [memory], "B", at_most=2048.0)
    yield Figure("  submitted", [number / taken], "tasks/s")


def _beside_each_other(entrant: Entrant, effort: Effort) -> Iterator[Figure]:
    steps, leaves = effort.round_trips, 2 * effort.tasks
    chains, trees, rates = [], [], []
    with (
        SERVERS[entrant.server]() as server,
        ContenderProcess(entrant.program, entrant.python, server) as contender,
    ):
        contender.start(PATIENCE)
        contender.measure("bulk", max(1, effort.tasks // 10), PATIENCE)
        time.sleep(SETTLED)
        for _ in range(effort.runs):
            trip = sum(contender.measure("round_trip", steps, PATIENCE)) / steps
            chains.append(contender.measure("chain", steps, PATIENCE) / steps / trip)
            flat = contender.measure("forest", leaves, PATIENCE)
            tree = contender.measure("tree", leaves, PATIENCE)
            trees.append(tree / flat)
            rates.append(leaves / tree)
    goal = 1.1 if entrant.name == OURS else None
    yield Figure(f"{entrant.name}: a step of a chain, in round trips", chains, "", at_most=goal)
    name = f"{entrant.name}: {leaves:,} to {-(-leaves // 100)} to 1, to the same without waiting"
    yield Figure(name, trees, "", at_most=goal)
    yield Figure("  leaves", rates, "/s")
