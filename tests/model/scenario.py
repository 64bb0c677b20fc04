"""A scenario: programs, nodes and their size; and one run of it, judged."""

from __future__ import annotations

from dataclasses import dataclass

from tests.model import history
from tests.model.agents import Node
from tests.model.checker import Checker
from tests.model.choices import Choices
from tests.model.clients import Plan, Program, Rival
from tests.model.cloud import Cloud
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
    lock: float = 30.0
    time_to_live: float | None = None
    max_delivery_count: int = 1000
    """Of messages of tasks."""
    max_results_count: int = 1000
    """The same of messages of results."""
    agents_after: float = 0.0
    """Seconds until the nodes are there."""


@dataclass(slots=True)
class Outcome:
    """How a run went."""

    checker: Checker
    moves: int
    seconds: float
    """Virtual ones."""
    records: list[history.Record]
    blobs: list[str]
    """What is left in storage."""


def play(scenario: Scenario, choices: Choices, *, keep: bool = False) -> Outcome:
    """One run to its end; the records are kept where wanted."""
    checker = Checker(patience=600.0)
    records: list[history.Record] = []

    def record(entry: history.Record) -> None:
        checker.add(entry)
        if keep:
            records.append(entry)

    cloud = Cloud(
        scenario.lock, scenario.time_to_live, scenario.max_delivery_count, scenario.max_results_count
    )
    world = World(choices, record, cloud)
    began = world.now
    programs = [Program(world, plan) for plan in scenario.plans]
    world.owed = lambda: cloud.dead_tasks.has_ready() or any(program.waits for program in programs)
    rivals = [Rival(world, plan) for plan in scenario.plans if plan.rivals]
    nodes = [
        Node(world, f"node{n}", scenario.slots, scenario.idle_exit, scenario.agents_after)
        for n in range(scenario.nodes)
    ]
    for number, moment in enumerate(scenario.drains):
        node = nodes[number % len(nodes)]
        node.spawn(node.drain_after(moment))

    def over() -> bool:
        return (
            all(client.done for client in (*programs, *rivals))
            and cloud.empty
            and all(node.quiet for node in nodes)
        )

    halted = not world.run(over)
    world.close()
    for name, queue in (("tasks", cloud.tasks), ("results", cloud.results)):
        world.note(history.Queue(world.now, name, *queue.counts))
    for program in programs:
        world.note(history.Queue(world.now, f"owed to {program.name}", program.owed, 0, 0))
    world.note(history.Ended(world.now, halted))
    return Outcome(checker, world.moves, world.now - began, records, sorted(cloud.blobs))
