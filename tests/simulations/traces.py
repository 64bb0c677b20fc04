"""Arrivals and durations of tasks, made up by shape and seed: what an elastic pool has to serve.

Shapes, forty traces of each. The seed decides the rest: the limit of the pool from 2 to 1,000 nodes, boots of
60 to 300 s, 1 to 8 slots, tasks of 2 s to half an hour.

- bursts: one to five maps of many tasks, in an afternoon. What an interactive user does.
- ramps: tasks come ever faster for an hour or three, and end.
- diurnal: a day with a quiet night, after the daily wave that published cluster traces agree in.
- trickle: single tasks, minutes apart.
- heavy tail: bursts with durations of a Pareto distribution, some a hundred times the mean.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

MOST_TASKS = 2000
"""Tasks of a trace: larger pools get longer tasks."""


@dataclass(frozen=True)
class Trace:
    """What is submitted when, and the nodes that it meets."""

    shape: str
    seed: int
    tasks: tuple[tuple[float, float], ...]
    """Arrival and duration in seconds, by arrival."""
    boots: tuple[float, ...]
    """Boot times of the nodes in the order in which they are asked for, in seconds. They begin anew after the
    last."""
    slots: int
    most: int
    """`max_nodes`"""
    known: bool
    """Whether the durations of the command were seen before."""

    @cached_property
    def work(self) -> float:
        """Seconds that the tasks run."""
        return sum(duration for _, duration in self.tasks)

    @cached_property
    def arrivals(self) -> tuple[float, ...]:
        return tuple(at for at, _ in self.tasks)

    @cached_property
    def work_until(self) -> tuple[float, ...]:
        """Seconds of work of the first tasks, by their number."""
        return (0.0, *accumulate(duration for _, duration in self.tasks))

    @cached_property
    def mean_boot(self) -> float:
        return sum(self.boots) / len(self.boots)

    @cached_property
    def mean_task(self) -> float:
        return self.work / len(self.tasks)


def _around(chance: random.Random, mean: float, spread: float = 0.5) -> float:
    return mean * chance.lognormvariate(-spread * spread / 2, spread)


def _bursts(chance: random.Random, nodes: int, slots: int, boot: float) -> list[tuple[float, float]]:
    return _of_bursts(chance, nodes, slots, boot, lambda mean: _around(chance, mean))


def _heavy_tail(chance: random.Random, nodes: int, slots: int, boot: float) -> list[tuple[float, float]]:
    shape = chance.uniform(1.3, 1.9)

    def duration(mean: float) -> float:
        return min(100 * mean, mean * (shape - 1) / shape * chance.paretovariate(shape))

    return _of_bursts(chance, nodes, slots, boot, duration)


def _of_bursts(
    chance: random.Random, nodes: int, slots: int, boot: float, duration: Callable[[float], float]
) -> list[tuple[float, float]]:
    count = chance.randint(1, 5)
    mean = _log_uniform(chance, 2.0, 1800.0)
    found = []
    for _ in range(count):
        work = nodes * slots * boot * chance.uniform(0.5, 5.0)
        tasks = max(1, min(MOST_TASKS // count, round(work / mean)))
        each = max(mean, work / tasks) if tasks == MOST_TASKS // count else mean
        at, pace = chance.uniform(0.0, 4 * 3600.0), chance.uniform(0.001, 0.02)
        found += [(at + pace * number, duration(each)) for number in range(tasks)]
    return found


def _ramps(chance: random.Random, nodes: int, slots: int, boot: float) -> list[tuple[float, float]]:
    length = chance.uniform(3600.0, 3 * 3600.0)
    return _of_rate(chance, nodes, slots, length, lambda part: part)


def _diurnal(chance: random.Random, nodes: int, slots: int, boot: float) -> list[tuple[float, float]]:
    night = chance.uniform(0.0, 0.3)

    def wave(part: float) -> float:
        return max(0.0, night + (1 - night) * (0.5 - 0.5 * math.cos(2 * math.pi * part)) ** 2)

    return _of_rate(chance, nodes, slots, 86_400.0, wave)


def _of_rate(
    chance: random.Random, nodes: int, slots: int, length: float, rate: Callable[[float], float]
) -> list[tuple[float, float]]:
    share = sum(rate((step + 0.5) / 100) for step in range(100)) / 100
    work = nodes * slots * length * share
    mean = max(_log_uniform(chance, 2.0, 1800.0), work / MOST_TASKS)
    most = nodes * slots / mean
    found, at = [], 0.0
    while (at := at + chance.expovariate(most)) < length:
        if chance.random() < rate(at / length):
            found.append((at, _around(chance, mean)))
    return found or [(0.0, mean)]


def _trickle(chance: random.Random, nodes: int, slots: int, boot: float) -> list[tuple[float, float]]:
    gap, mean = _log_uniform(chance, 60.0, 1800.0), _log_uniform(chance, 2.0, 600.0)
    found, at = [], 0.0
    for _ in range(chance.randint(30, 150)):
        found.append((at, _around(chance, mean)))
        at += chance.expovariate(1 / gap)
    return found


def _log_uniform(chance: random.Random, low: float, high: float) -> float:
    return math.exp(chance.uniform(math.log(low), math.log(high)))


SHAPES = {
    "bursts": _bursts,
    "ramps": _ramps,
    "diurnal": _diurnal,
    "trickle": _trickle,
    "heavy tail": _heavy_tail,
}


def make_trace(shape: str, seed: int) -> Trace:
    """Make the trace of a shape and a seed: the same each time."""
    chance = random.Random(f"{shape} {seed}")
    nodes = round(_log_uniform(chance, 1.0, 1000.0))
    boot, slots = chance.uniform(75.0, 240.0), chance.choice((1, 1, 2, 4, 8))
    tasks = sorted(SHAPES[shape](chance, nodes, slots, boot))
    first = tasks[0][0]
    boots = tuple(min(300.0, max(60.0, boot * chance.uniform(0.8, 1.25))) for _ in range(997))
    moved = tuple((at - first, duration) for at, duration in tasks)
    return Trace(shape, seed, moved, boots, slots, max(2, nodes), chance.random() < 0.8)


def all_traces(each: int = 40) -> list[Trace]:
    """Return so many traces of each shape."""
    return [make_trace(shape, seed) for shape in SHAPES for seed in range(each)]
