"""What grows with the number of sessions and nodes: wake-ups at rest, the rate, what a task costs, switches.

Each measurement is a program of its own. With `--before` each is made in that checkout as well, in
alternation: the figures of both are of one run. Processor time is not steady on a shared machine, so what is
counted (wake-ups, credits) says more.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.bench_slots import switch_times
from tests.benchmarks.harness import Figure

if TYPE_CHECKING:
    from tests.benchmarks.cases import Effort

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PROGRAM = HERE / "program.py"
TASKS = HERE.parent / "tasks"
NOW, BEFORE = "", "before: "


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything."""

    sessions: int = 100
    nodes: tuple[int, ...] = (2, 10, 25)
    tasks: int = 20_000
    rounds: int = 3
    seconds: float = 30.0
    """Of rest that is watched, each time."""
    switches: int = 200
    """Of a slot, from one session to another."""


FULL = Scale()
QUICK = Scale(sessions=2, nodes=(1,), tasks=200, rounds=1, seconds=0.5, switches=6)


def _scale(effort: Effort) -> Scale:
    return FULL if effort.runs > 1 else QUICK


def _measured(effort: Effort, *arguments: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure in this checkout and, where there is one, in that of before."""
    checkouts = [(NOW, ROOT)] if effort.before is None else [(BEFORE, effort.before), (NOW, ROOT)]
    for name, root in checkouts:
        python = Path(sys.executable) if root == ROOT else root / ".venv" / "bin" / "python"
        command = [str(python), str(PROGRAM), "--folder", str(TASKS), *map(str, arguments)]
        finished = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
        yield name, json.loads(finished.stdout)


def idle(effort: Effort) -> Iterator[Figure]:
    """How often processes wake while there is nothing to do: an agent, a session, a hundred sessions."""
    scale = _scale(effort)
    arguments = ["--sessions", scale.sessions, "--seconds", scale.seconds]
    for name, found in _measured(effort, "idle", *arguments):
        yield from _wake_ups(f"{name}idle agent", found["agent"], 5.0)
        yield from _wake_ups(f"{name}client without a session", found["none"], None)
        yield from _wake_ups(f"{name}client with an idle session", found["one"], 2.0)
        yield from _wake_ups(f"{name}client with {scale.sessions} idle sessions", found["many"], None)
        for quantity, one in found["one"].items():
            times = [found["many"].get(quantity, 0.0) / max(one, 0.01)]
            yield Figure(f"{name}  of those with one session: {WORDS[quantity]}", times, "", at_most=3.0)


WORDS = {"waits": "wake-ups", "polls": "calls of epoll_wait"}


def _wake_ups(name: str, counts: dict[str, float], at_most: float | None) -> Iterator[Figure]:
    for quantity, count in counts.items():
        yield Figure(f"{name}: {WORDS[quantity]}", [count], "a second", at_most=at_most)


def sessions(effort: Effort) -> Iterator[Figure]:
    """The rate of many sessions of one client, against that of one of them."""
    scale = _scale(effort)
    arguments = ["--sessions", scale.sessions, "--tasks", scale.tasks, "--rounds", scale.rounds]
    for name, found in _measured(effort, "rate", *arguments):
        many = f"{scale.sessions} sessions"
        yield Figure(f"{name}no-ops through one session", found["one rate"], "tasks/s")
        yield Figure(f"{name}no-ops through {many}", found["many rate"], "tasks/s")
        yield Figure(f"{name}  of the rate of one", _ratios(found, "many rate", "one rate"), "", at_least=0.8)
        costs = {which: _sums(found, which) for which in ("one", "many")}
        yield Figure(
            f"{name}  cost of a task, of that of one", _ratios(costs, "many", "one"), "", at_most=1.25
        )
        yield Figure(f"{name}  credits of a task, one session", found["one credits"], "")
        yield Figure(f"{name}  credits of a task, {many}", found["many credits"], "")


def _sums(found: dict[str, list[float]], which: str) -> list[float]:
    """What a task cost client, broker and agents together, round by round."""
    return [sum(parts) for parts in zip(*(found[f"{which} {name}"] for name in PARTS), strict=True)]


PARTS = ("client", "broker", "agents")


def _ratios(found: dict[str, list[float]], one: str, other: str) -> Sequence[float]:
    return [value / base for value, base in zip(found[one], found[other], strict=True)]


def switch(effort: Effort) -> Iterator[Figure]:
    """From one session's task to another's in the same slot."""
    with tempfile.TemporaryDirectory() as folder:
        times = asyncio.run(switch_times(Path(folder), _scale(effort).switches))
    for name, found in times.items():
        yield Figure(f"one slot, {name}: to the next task's outcome", found, "ms", at_most=15.0)


def nodes(effort: Effort) -> Iterator[Figure]:
    """What a no-op costs client and broker, by the number of nodes."""
    scale = _scale(effort)
    least: dict[str, float] = {}
    for count in scale.nodes:
        arguments = ["--nodes", count, "--tasks", scale.tasks, "--rounds", scale.rounds]
        for name, found in _measured(effort, "nodes", *arguments):
            costs = [sum(parts) for parts in zip(found["client"], found["broker"], strict=True)]
            yield Figure(f"{name}{count} nodes: CPU of client and broker for a no-op", costs, "µs")
            base = least.setdefault(name, sorted(costs)[len(costs) // 2])
            yield Figure(
                f"{name}  of that with the fewest", [cost / base for cost in costs], "", at_most=1.15
            )
            yield Figure(f"{name}  its credits", found["credits"], "")
            yield Figure(f"{name}  round trip of a lone no-op", found["trip"], "ms")
