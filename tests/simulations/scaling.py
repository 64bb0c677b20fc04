"""The scaling policy beside oracles, Batch's documented formula and pools of fixed size, trace by trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.simulations.elastic import ElasticPool, ElasticReport
from tests.simulations.size_controls import FixedControl, FormulaControl, PolicyControl, Removal, oracle
from tests.simulations.traces import SHAPES, Trace, all_traces

MOST_COST, MOST_TIME = 1.25, 1.5
"""What the policy may cost and how long tasks may take, as multiples of an oracle's."""
DEFAULT_IDLE_EXIT = 600.0


@dataclass(frozen=True)
class Comparison:
    """One trace under each control."""

    trace: Trace
    policy: ElasticReport
    keeping: ElasticReport
    """The oracle whose idle nodes stay for `agent.idle_exit`, as the user has set it."""
    strict: ElasticReport
    """The oracle that keeps a node only where it knows that work comes soon."""
    formula: ElasticReport
    fixed: ElasticReport | None
    """The largest fixed pool that costs no more than the policy, if it has a node."""


def compare(trace: Trace, idle_exit: float = DEFAULT_IDLE_EXIT) -> Comparison:
    """Run one trace under each control."""
    policy = run_policy(trace, idle_exit)
    last = max(at + duration for at, duration in trace.tasks)
    nodes = math.floor(policy.cost / last)
    return Comparison(
        trace=trace,
        policy=policy,
        keeping=oracle(trace, idle_exit),
        strict=oracle(trace),
        formula=ElasticPool(trace, FormulaControl(trace)).run(),
        fixed=ElasticPool(trace, FixedControl(nodes)).run() if nodes else None,
    )


def run_policy(trace: Trace, idle_exit: float, removal: Removal = "idle first") -> ElasticReport:
    """Run one trace under the policy."""
    return ElasticPool(trace, PolicyControl(trace, idle_exit, removal), idle_exit=idle_exit).run()


def within(report: ElasticReport, other: ElasticReport) -> bool:
    """Return whether a run costs and takes no more than it may beside an oracle's."""
    return report.cost <= MOST_COST * other.cost and report.mean_time <= MOST_TIME * other.mean_time


def better(report: ElasticReport, other: ElasticReport) -> bool:
    """Return whether cost times mean time is less."""
    return report.cost * report.mean_time < other.cost * other.mean_time


def scaling_rows(idle_exit: float, each: int = 40) -> Iterator[Sequence[str]]:
    """Make the table of all traces, by shape."""
    yield (
        "traces", "beside", "cost: median", "95 %", "time: median", "95 %", "within 1.25 and 1.5",
        "less cost x time", "less of both", "not less of both",
    )  # fmt: skip
    found = [compare(trace, idle_exit) for trace in all_traces(each)]
    for shape in (*SHAPES, "all"):
        some = [comparison for comparison in found if shape in ("all", comparison.trace.shape)]
        for name, of in _OTHERS.items():
            pairs = [(comparison.policy, other) for comparison in some if (other := of(comparison))]
            yield shape, name, *(_row(pairs) if pairs else ()), _share_of_unbeaten(pairs, len(some))


_OTHERS: dict[str, Callable[[Comparison], ElasticReport | None]] = {
    "oracle, same idle time": lambda each: each.keeping,
    "strict oracle": lambda each: each.strict,
    "formula": lambda each: each.formula,
    "fixed, same cost": lambda each: each.fixed,
}
Pairs = list[tuple[ElasticReport, ElasticReport]]


def _row(pairs: Pairs) -> Iterator[str]:
    yield from _ratios(pairs)
    yield _share([within(*pair) for pair in pairs])
    yield _share([better(*pair) for pair in pairs])
    yield _share([mine.cost < other.cost and mine.mean_time < other.mean_time for mine, other in pairs])


def _ratios(pairs: Pairs) -> Iterator[str]:
    for ratios in (
        sorted(mine.cost / other.cost for mine, other in pairs),
        sorted(mine.mean_time / other.mean_time for mine, other in pairs),
    ):
        yield f"{ratios[len(ratios) // 2]:.2f}"
        yield f"{ratios[int(0.95 * (len(ratios) - 1))]:.2f}"


def _share_of_unbeaten(pairs: Pairs, traces: int) -> str:
    """Return the share of traces in which the other does not both cost less and take less time."""
    beaten = [other.cost <= mine.cost and other.mean_time < mine.mean_time for mine, other in pairs]
    return f"{1 - sum(beaten) / traces:.0%}"


def _share(answers: list[bool]) -> str:
    return f"{sum(answers) / len(answers):.0%}"


def removal_rows(each: int = 10) -> Iterator[Sequence[str]]:
    """Make the table of what happens when Batch picks the nodes that leave."""
    yield "nodes that leave", "cost: median", "95 %", "time: median", "95 %", "growth blocked, each trace"
    traces = all_traces(each)
    base = [run_policy(trace, DEFAULT_IDLE_EXIT) for trace in traces]
    removals: tuple[Removal, ...] = ("idle first", "any, waits", "any, stopped", "any, drained")
    for removal in removals:
        runs = [run_policy(trace, DEFAULT_IDLE_EXIT, removal) for trace in traces]
        row = _ratios(list(zip(runs, base, strict=True)))
        yield removal, *row, f"{sum(run.blocked for run in runs) / len(runs) / 60:.0f} min"
