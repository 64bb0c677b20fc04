"""The scenarios that are played: small ones for every order, and any number of larger ones by a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Final

from tests.model.agents import Work
from tests.model.clients import Plan
from tests.model.scenario import Scenario

_TWO: Final = (Work(), Work())

SMALL: Final[Mapping[str, Scenario]] = {
    "two messages": Scenario((Plan("client", _TWO),)),
    "one pack": Scenario((Plan("client", _TWO, known_short=True),)),
    "a retry": Scenario((Plan("client", (Work(failures=1), Work())),)),
    "long tasks": Scenario((Plan("client", (Work(45.0), Work(45.0))),)),
    "a cancellation": Scenario((Plan("client", (Work(3.0), Work()), cancels=frozenset({0})),)),
    "a drain": Scenario((Plan("client", (Work(3.0), Work(3.0))),), drains=(0.0, 4.0)),
    "agents that idle out": Scenario((Plan("client", _TWO, window=1),), idle_exit=0.5),
}
"""Two tasks, two agents, one client."""


def by_seed(seed: int, tasks: int) -> Scenario:
    """So many tasks of up to three clients in up to two jobs, on up to four nodes."""
    chance = random.Random(seed)
    clients = chance.randint(1, 3)
    plans = tuple(_plan(chance, f"client{n}", tasks // clients) for n in range(clients - 1))
    rest = tasks - sum(len(plan.works) for plan in plans)
    return Scenario(
        (*plans, _plan(chance, "client", rest)),
        nodes=chance.randint(2, 4),
        slots=chance.randint(1, 3),
        idle_exit=chance.choice((None, 5.0)),
        drains=tuple(chance.uniform(0.0, 60.0) for _ in range(chance.randint(0, 3))),
    )


def _plan(chance: random.Random, name: str, tasks: int) -> Plan:
    cancelled = chance.choice((0.0, 0.05))
    return Plan(
        name,
        [_work(chance) for _ in range(tasks)],
        job=chance.choice(("left", "right")),
        window=chance.choice((3, 50, 1000)),
        cancels=frozenset(place for place in range(tasks) if chance.random() < cancelled),
        known_short=chance.random() < 0.5,
    )


def _work(chance: random.Random) -> Work:
    kind = chance.random()
    if kind < 0.96:
        return Work(chance.choice((0.001, 0.001, 0.01)))
    if kind < 0.98:
        return Work(failures=chance.randint(1, 3))
    if kind < 0.995:
        return Work(chance.choice((1.0, 40.0)))
    return Work(lethal=True)
