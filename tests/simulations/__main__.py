"""`python -m tests.simulations [TABLE ...]`: packs near and far, fleets, their limits."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from batchflow.protocol import packing
from node_agent.scheduling import load_policy
from tests.simulations.costs import PREMIUM, Costs
from tests.simulations.exact import Job, World
from tests.simulations.fleet import Fleet, FleetWorld
from tests.simulations.limits import uses
from tests.simulations.scaling import DEFAULT_IDLE_EXIT, removal_rows, scaling_rows

TRIPS = (0.0001, 0.005, 0.02)

Row = Sequence[str]


def packs() -> Iterator[Row]:
    """A burst on 2 nodes of 1 slot, by how much work a pack may hold without a backlog. On the real cores."""
    yield "round trip", "tasks", "work of a pack", "tasks/s", "slots busy", "credits/task", "messages"
    chosen = packing._WORK, packing._OF_BACKLOG
    packing._OF_BACKLOG = 0.0  # type: ignore[misc]
    for trip in TRIPS:
        for duration in (0.0001, 0.001, 0.005):
            for work in (0.01, 0.02, 0.03, 0.04, 0.05, 0.08):
                packing._WORK = (work, work)  # type: ignore[misc]
                count = 20_000 if duration < 0.001 else int(8 / duration)
                report = World([Job(0.0, "x", duration)] * count, nodes=2, costs=Costs(round_trip=trip)).run()
                yield (
                    _ms(trip), _ms(duration), _ms(work), f"{report.rate:,.0f}", f"{report.busy:.0%}",
                    f"{report.credits_per_task:.2f}", f"{report.messages:,}",
                )  # fmt: skip
    packing._WORK, packing._OF_BACKLOG = chosen  # type: ignore[misc]


def backlogs() -> Iterator[Row]:
    """A burst on 2 nodes of 1 slot, by how much of the backlog a pack may hold. On the real cores."""
    yield "round trip", "tasks", "of the backlog", "at most", "tasks/s", "slots busy", "credits/task"
    chosen = packing._OF_BACKLOG, packing.MOST_WORK, load_policy.PACK_WORK
    tried = ((0.0, 0.099), (0.05, 0.099), (0.1, 0.07), (0.1, 0.099), (0.1, 0.2), (0.2, 0.099))
    for trip in TRIPS:
        for duration, count in ((0.001, 1000), (0.001, 8000), (0.005, 1600)):
            for share, most in tried:
                packing._OF_BACKLOG, packing.MOST_WORK = share, most  # type: ignore[misc]
                load_policy.PACK_WORK = 2 * most  # type: ignore[misc]
                report = World([Job(0.0, "x", duration)] * count, nodes=2, costs=Costs(round_trip=trip)).run()
                yield (
                    _ms(trip), f"{count:,} of {_ms(duration)}", f"{share:.0%}", _ms(most),
                    f"{report.rate:,.0f}", f"{report.busy:.1%}", f"{report.credits_per_task:.2f}",
                )  # fmt: skip
    packing._OF_BACKLOG, packing.MOST_WORK, load_policy.PACK_WORK = chosen  # type: ignore[misc]


def streams() -> Iterator[Row]:
    """Tasks that come evenly, with the thresholds that the policy chooses. On the real cores."""
    yield "round trip", "nodes", "tasks", "rate", "p50", "p99", "slots busy", "client's CPU", "credits/task"
    for trip in TRIPS:
        for nodes, duration, rate in (
            (2, 0.0001, 1000), (2, 0.0001, 5000), (8, 0.005, 400), (8, 0.005, 1200), (100, 0.05, 1000),
        ):  # fmt: skip
            jobs = [Job(number / rate, "x", duration) for number in range(4 * rate)]
            report = World(jobs, nodes=nodes, costs=Costs(round_trip=trip)).run()
            yield (
                _ms(trip), f"{nodes}", _ms(duration), f"{rate:,}/s", _ms(report.p50), _ms(report.p99),
                f"{report.busy:.0%}", f"{report.client_cpu:.0%}", f"{report.credits_per_task:.2f}",
            )  # fmt: skip


def holds() -> Iterator[Row]:
    """How long results wait for those of their companions. On the real cores, 2 nodes of 1 slot."""
    yield "round trip", "tasks", "hold", "tasks/s", "client's CPU", "credits/task"
    for trip in TRIPS:
        for duration in (0.0001, 0.001):
            for hold in (0.0, 0.002, 0.005, 0.01, 0.03, 0.06, 0.1):
                jobs = [Job(0.0, "x", duration)] * 8000
                report = World(jobs, nodes=2, costs=Costs(round_trip=trip), hold=hold).run()
                yield (
                    _ms(trip), _ms(duration), _ms(hold), f"{report.rate:,.0f}", f"{report.client_cpu:.0%}",
                    f"{report.credits_per_task:.2f}",
                )  # fmt: skip


FLEETS = (
    Fleet(nodes=100, tasks=200_000, duration=0.001),
    Fleet(nodes=100, tasks=200_000, duration=0.001, namespaces=4, queues=4),
    Fleet(nodes=100, tasks=200_000, duration=0.001, clients=4, namespaces=4, queues=4),
    Fleet(nodes=100, tasks=200_000, duration=0.001, clients=4, tier=PREMIUM),
    Fleet(nodes=100, tasks=100_000, duration=0.1),
    Fleet(nodes=100, tasks=100_000, duration=0.1, clients=4, namespaces=4, queues=4),
    Fleet(nodes=1000, tasks=200_000, duration=1.0),
    Fleet(nodes=1000, tasks=200_000, duration=1.0, namespaces=4, queues=4),
    Fleet(nodes=1000, tasks=200_000, duration=1.0, clients=4, namespaces=4, queues=4),
    Fleet(nodes=1000, tasks=200_000, duration=1.0, slots=4, clients=16, namespaces=16, queues=16),
    Fleet(nodes=1000, tasks=200_000, duration=1.0, slots=4, clients=4, tier=PREMIUM),
    Fleet(nodes=1000, tasks=1_000_000, duration=0.005, clients=8, tier=PREMIUM),
    Fleet(nodes=10_000, tasks=1_000_000, duration=60.0),
    Fleet(nodes=10_000, tasks=1_000_000, duration=10.0, clients=4, namespaces=4, queues=4),
)
LARGEST = (
    Fleet(nodes=10_000, tasks=10_000_000, duration=10.0, clients=5, namespaces=5, queues=5),
    Fleet(nodes=10_000, tasks=10_000_000, duration=0.005, clients=16, tier=PREMIUM),
)


def fleets(chosen: Sequence[Fleet] = FLEETS) -> Iterator[Row]:
    """Bursts of tasks on many nodes, the broker 5 ms away: rates, and what is fullest."""
    yield (
        "nodes x slots", "tasks", "each", "clients", "tier", "namespaces", "tasks/s", "slots busy",
        "credits/task", "fullest", "then", "took",
    )  # fmt: skip
    for fleet in chosen:
        started = time.perf_counter()
        outcome = FleetWorld(fleet).run()
        first, second, *_ = uses(outcome)
        yield (
            f"{fleet.nodes:,} x {fleet.slots}", f"{fleet.tasks:,}", _ms(fleet.duration), f"{fleet.clients}",
            fleet.tier.name, f"{fleet.namespaces}", f"{outcome.rate:,.0f}", f"{outcome.busy:.0%}",
            f"{outcome.credits_per_task:.2f}", str(first), str(second),
            f"{time.perf_counter() - started:.0f} s",
        )  # fmt: skip


STEADY = (
    Fleet(nodes=100, tasks=100_000, duration=0.001, rate=3000.0),
    Fleet(nodes=100, tasks=20_000, duration=0.1, rate=200.0),
    Fleet(nodes=100, tasks=50_000, duration=0.1, rate=700.0, clients=4, namespaces=4, queues=4),
    Fleet(nodes=100, tasks=50_000, duration=0.1, rate=800.0, tier=PREMIUM),
    Fleet(nodes=1000, tasks=20_000, duration=1.0, rate=240.0),
    Fleet(nodes=1000, tasks=50_000, duration=1.0, rate=800.0, clients=4, namespaces=4, queues=4),
    Fleet(nodes=1000, tasks=500_000, duration=0.005, rate=20_000.0, clients=8, tier=PREMIUM),
    Fleet(nodes=10_000, tasks=50_000, duration=60.0, rate=150.0),
    Fleet(nodes=10_000, tasks=100_000, duration=10.0, rate=900.0, clients=5, namespaces=5, queues=5),
)


def steady() -> Iterator[Row]:
    """Tasks that come evenly, on many nodes, the broker 5 ms away. What they take beyond their own time."""
    yield (
        "nodes", "tasks of", "a second", "clients", "tier", "namespaces", "p50", "p99", "slots busy",
        "credits/s of the fullest", "connections of one",
    )  # fmt: skip
    for fleet in STEADY:
        outcome = FleetWorld(fleet).run()
        connections = next(use for use in uses(outcome) if use.name.startswith("connections"))
        beyond = [_ms(max(0.0, each - fleet.duration)) for each in (outcome.p50, outcome.p99)]
        yield (
            f"{fleet.nodes:,}", _ms(fleet.duration), f"{fleet.rate:,.0f}", f"{fleet.clients}",
            fleet.tier.name, f"{fleet.namespaces}", *beyond, f"{outcome.busy:.0%}",
            f"{outcome.fullest / outcome.elapsed:,.0f}", f"{connections.used:,.0f}",
        )  # fmt: skip


def largest() -> Iterator[Row]:
    """Ten million tasks on ten thousand nodes. Takes some minutes."""
    yield from fleets(LARGEST)


def scaling() -> Iterator[Row]:
    """Elastic pools: 200 traces under the policy and beside others, with the default `agent.idle_exit`."""
    yield from scaling_rows(DEFAULT_IDLE_EXIT)


def scaling_short() -> Iterator[Row]:
    """The same with an `agent.idle_exit` of a minute."""
    yield from scaling_rows(60.0)


def removals() -> Iterator[Row]:
    """Elastic pools: which nodes Batch takes, beside the best case."""
    yield from removal_rows()


TABLES: dict[str, Callable[[], Iterator[Row]]] = {
    "packs": packs,
    "backlogs": backlogs,
    "streams": streams,
    "holds": holds,
    "fleets": fleets,
    "steady": steady,
    "largest": largest,
    "scaling": scaling,
    "scaling_short": scaling_short,
    "removals": removals,
}


def _ms(seconds: float) -> str:
    milliseconds = seconds * 1000
    return f"{milliseconds:,.0f} ms" if milliseconds >= 10 else f"{milliseconds:.3g} ms"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulations", description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}; default: all")
    options = parser.parse_args()
    if unknown := set(options.tables) - set(TABLES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    for name in options.tables or TABLES:
        _tell(f"\n{TABLES[name].__doc__}\n")
        for number, row in enumerate(TABLES[name]()):
            _tell(f"| {' | '.join(row)} |")
            if not number:
                _tell(f"|{'---|' * len(row)}")


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
