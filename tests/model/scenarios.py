"""The scenarios that are played: small ones for every order, and any number of larger ones by a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from tests.model.agents import Work
from tests.model.clients import Plan
from tests.model.scenario import Scenario

_GRAPH: Final = 12
"""Tasks of a graph: those of another one are not waited for."""
_TWO: Final = (Work(), Work())
_LARGE: Final = Work(large_arguments=True, large_result=True)
_CHAIN: Final = (Work(), Work(inputs=(0,)), Work(inputs=(1,)))
_FAILING: Final = (Work(fails=True), Work(inputs=(0,)), Work(inputs=(1, 0), passes=True))
_ROW: Final = (Work(fails=True), Work(inputs=(0,)), Work(after=(1,)))
_LONG: Final = (Work(1.0), Work(5.0), Work(100.0, after=(1,)))
_SHORT: Final = (Work(1.0), Work(5.0), Work(after=(1,)))
_LATE: Final = (Work(1.0), Work(8.0), Work(after=(0,)), Work(inputs=(0, 1), after=(2,)))
_JOIN: Final = (Work(), Work(8.0), Work(inputs=(0,), after=(1,)))

SMALL: Final[Mapping[str, Scenario]] = {
    "two messages": Scenario((Plan("client", _TWO),)),
    "one pack": Scenario((Plan("client", _TWO, known_short=True),)),
    "a retry": Scenario((Plan("client", (Work(failures=1), Work())),)),
    "long tasks": Scenario((Plan("client", (Work(45.0), Work(45.0))),)),
    "a cancellation": Scenario((Plan("client", (Work(3.0), Work()), cancels=frozenset({0})),)),
    "a cancellation in a pack": Scenario(
        (Plan("client", (Work(), Work(3.0)), cancels=frozenset({1}), cancel_after=0.5, known_short=True),)
    ),
    "a cancellation behind what runs": Scenario(
        (
            Plan(
                "client", (Work(), Work(), Work()), cancels=frozenset({2}), cancel_after=0.5, known_short=True
            ),
        ),
        nodes=1,
    ),
    "an unconfirmed cancellation": Scenario(
        (Plan("client", (Work(), Work(3.0)), cancels=frozenset({0}), cancel_after=0.5, pause=3.0),),
        agents_after=8.0,
    ),
    "cancellations one after another": Scenario(
        (Plan("client", (Work(3.0),) * 3, window=1, cancels=frozenset({0, 1, 2}), cancel_after=0.5),)
    ),
    "a drain": Scenario((Plan("client", (Work(3.0), Work(3.0))),), drains=(0.0, 4.0)),
    "agents that idle out": Scenario((Plan("client", _TWO, window=1),), idle_exit=0.5),
    "payloads by reference": Scenario((Plan("client", (_LARGE, _LARGE)),)),
    "a journal": Scenario((Plan("client", _TWO, journal=True, pause=2.0),)),
    "a reader who is late": Scenario((Plan("client", _TWO, unclaimed=1, pause=40.0),)),
    "a close": Scenario((Plan("client", _TWO, closes_after=1),)),
    "a second client": Scenario((Plan("client", (Work(), Work(20.0)), rivals=(0.0, 60.0)),)),
    "a deadly task": Scenario((Plan("client", (Work(crashes_agent=True), Work()), known_short=True),)),
    "tasks that expire": Scenario(
        (Plan("client", _TWO, expires=True),), time_to_live=10.0, agents_after=11.0
    ),
    "few deliveries": Scenario((Plan("client", _TWO, expires=True),), max_delivery_count=1),
    "results that the broker gives up": Scenario((Plan("client", _TWO, pause=40.0),), max_results_count=1),
    "a chain": Scenario((Plan("client", _CHAIN, graph=True),)),
    "a failure in a graph": Scenario((Plan("client", _FAILING, graph=True),)),
    "a cancellation in a graph": Scenario(
        (Plan("client", _CHAIN, cancels=frozenset({1}), graph=True, pause=2.0),), agents_after=1.0
    ),
    "a late cancellation in a graph": Scenario(
        (Plan("client", _CHAIN, cancels=frozenset({1}), cancel_after=0.5, graph=True, pause=2.0),),
        agents_after=1.0,
    ),
    "failures in a row": Scenario((Plan("client", _ROW, graph=True),)),
    "a join": Scenario((Plan("client", _JOIN, graph=True),)),
    "a long task in a graph": Scenario((Plan("client", _LONG, graph=True, closes_after=1),)),
    "a close before all is written": Scenario((Plan("client", _SHORT, graph=True, closes_after=1),)),
    "a close in a graph": Scenario((Plan("client", _LATE, graph=True, closes_after=2),)),
}
"""Two or three tasks, two agents, one client."""

SLOW: Final = frozenset(
    {
        "long tasks",
        "cancellations one after another",
        "a drain",
        "agents that idle out",
        "a second client",
        "a deadly task",
        "tasks that expire",
        "a chain",
        "a failure in a graph",
        "a cancellation in a graph",
        "a late cancellation in a graph",
        "failures in a row",
        "a join",
        "a long task in a graph",
        "a close before all is written",
        "a close in a graph",
    }
)
"""Those that have many steps."""


def by_seed(seed: int, tasks: int) -> Scenario:
    """So many tasks of up to three clients in up to two jobs, on up to four nodes."""
    chance = random.Random(seed)
    expires = chance.random() < 0.1
    clients = chance.randint(1, 3)
    plans = tuple(_plan(chance, f"client{n}", tasks // clients, expires) for n in range(clients - 1))
    rest = tasks - sum(len(plan.works) for plan in plans)
    return Scenario(
        (*plans, _plan(chance, "client", rest, expires)),
        nodes=chance.randint(2, 4),
        slots=chance.randint(1, 3),
        idle_exit=chance.choice((None, 5.0)),
        drains=tuple(chance.uniform(0.0, 60.0) for _ in range(chance.randint(0, 3))),
        time_to_live=20.0 if expires else None,
        max_delivery_count=3 if expires else 1000,
        max_results_count=3 if expires else 1000,
        agents_after=chance.choice((0.0, 15.0, 30.0)) if expires else 0.0,
    )


def _plan(chance: random.Random, name: str, tasks: int, expires: bool) -> Plan:
    cancelled = chance.choice((0.0, 0.05))
    large = chance.choice((0.0, 0.1))
    works = [_work(chance, large) for _ in range(tasks)]
    graph = chance.random() < 0.4
    return Plan(
        name,
        [_waiting(chance, place, work) for place, work in enumerate(works)] if graph else works,
        job=chance.choice(("left", "right")),
        window=chance.choice((3, 50, 1000)),
        cancels=frozenset(place for place in range(tasks) if chance.random() < cancelled),
        cancel_after=chance.choice((0.0, 0.5, 2.0)),
        known_short=chance.random() < 0.5,
        journal=chance.random() < 0.3,
        unclaimed=chance.choice((5, 50, 500)),
        pause=chance.choice((0.0, 0.0, 2.0)),
        closes_after=chance.choice((None, None, 40, 300)),
        expires=expires,
        rivals=_moments(chance) if chance.random() < 0.3 else (),
        graph=graph,
    )


def _waiting(chance: random.Random, place: int, work: Work) -> Work:
    """The same work, in a graph: it waits for up to three others of the same dozen."""
    before = range(place - place % _GRAPH, place)
    if not before or chance.random() < 0.3:
        return replace(work, fails=chance.random() < 0.03)
    waits = chance.sample(before, chance.randint(1, min(3, len(before))))
    values = chance.randint(0, len(waits))
    return replace(
        work,
        large_arguments=False,
        fails=chance.random() < 0.03,
        inputs=tuple(waits[:values]),
        after=tuple(waits[values:]),
        passes=chance.random() < 0.2,
    )


def _moments(chance: random.Random) -> tuple[float, ...]:
    return tuple(sorted(chance.uniform(0.0, 600.0) for _ in range(5)))


def _work(chance: random.Random, large: float) -> Work:
    kind = chance.random()
    if kind < 0.96:
        return Work(
            chance.choice((0.001, 0.001, 0.01)),
            large_arguments=chance.random() < large,
            large_result=chance.random() < large,
        )
    if kind < 0.98:
        return Work(failures=chance.randint(1, 3))
    if kind < 0.995:
        return Work(chance.choice((1.0, 40.0)))
    return Work(crashes_agent=True)
