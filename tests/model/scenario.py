"""A scenario: programs, nodes and their size; and one run of it, judged."""

from __future__ import annotations

from dataclasses import dataclass

from tests.model import history
from tests.model.agents import Node
from tests.model.checker import Checker
from tests.model.choices import Choices
from tests.model.clients import Plan, Program
from tests.model.world import World


@dataclass(frozen=True, slots=True)
class Scenario:
    """What takes part."""

    plans: tuple[Plan, ...]
    nodes: int = 2
    slots: int = 1
    idle_exit: float | None = None
    drains: tuple[float, ...] = ()
    """The moments, in seconds after the start, at which one agent after the other is told to drain."""


@dataclass(slots=True)
class Outcome:
    """How a run went."""

    checker: Checker
    moves: int
    seconds: float
    """Virtual ones."""
    records: list[history.Record]


def play(scenario: Scenario, choices: Choices, *, keep: bool = False) -> Outcome:
    """One run to its end; the records are kept where wanted."""
    checker = Checker(patience=600.0)
    records: list[history.Record] = []

    def record(entry: history.Record) -> None:
        checker.add(entry)
        if keep:
            records.append(entry)

    world = World(choices, record)
    began = world.now
    programs = [Program(world, plan) for plan in scenario.plans]
    nodes = [Node(world, f"node{n}", scenario.slots, scenario.idle_exit) for n in range(scenario.nodes)]
    for number, moment in enumerate(scenario.drains):
        node = nodes[number % len(nodes)]
        node.spawn(node.drain_after(moment))

    def over() -> bool:
        return (
            all(program.done for program in programs)
            and not any(world.tasks.counts)
            and not any(world.results.counts)
            and all(node.quiet for node in nodes)
        )

    halted = not world.run(over)
    for name, queue in (("tasks", world.tasks), ("results", world.results)):
        world.note(history.Queue(world.now, name, *queue.counts))
    world.note(history.Ended(world.now, halted))
    return Outcome(checker, world.moves, world.now - began, records)
