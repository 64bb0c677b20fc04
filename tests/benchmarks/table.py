"""The tables of the contest, out of its records, which a file may hold from one run to the next."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks.contest import ENTRANTS, LIMIT, OURS, PLAIN, Record
from tests.benchmarks.harness import short

EFFICIENCIES = {"spin", "nap"}
"""Rates that are told as a share of what two plain processes do in the round that disturbs them least."""
IDEAL = 2000.0
"""Tasks of 1 ms a second on two processors."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A column of the table."""

    key: str
    title: str
    more_is_better: bool = False


QUANTITIES = (
    Quantity("bulk", "no-ops in bulk /s", more_is_better=True),
    Quantity("one_by_one", "no-ops one by one /s", more_is_better=True),
    Quantity("p50", "round trip p50 ms"),
    Quantity("p99", "round trip p99 ms"),
    Quantity("echo", "100 KB in and out /s", more_is_better=True),
    Quantity("spin", "1 ms of CPU, efficiency", more_is_better=True),
    Quantity("nap", "1 ms asleep, efficiency", more_is_better=True),
    Quantity("start", "start to first result s"),
    Quantity("memory", "memory MB"),
)


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure of ours shall be: a multiple of the best peer's, or a number."""

    key: str
    bound: float
    of_the_best: bool = False


GOALS = (
    Goal("bulk", 8.0, of_the_best=True),
    Goal("one_by_one", 4.0, of_the_best=True),
    Goal("p50", 1.0, of_the_best=True),
    Goal("p99", 1.5, of_the_best=True),
    Goal("echo", 1.0, of_the_best=True),
    Goal("spin", 0.80),
    Goal("start", 1.2),
    Goal("memory", 350.0),
)

Values = dict[tuple[str, str], list[float]]
"""By contender and quantity, a value for each round."""


def append(path: Path, record: Record) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(record)) + "\n")


def read(path: Path) -> list[Record]:
    return [Record(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def values_of(records: Iterable[Record]) -> Values:
    """Efficiencies worked out, the rest as it is."""
    records = list(records)
    plain: dict[str, float] = {}
    for record in records:
        if record.contender == PLAIN:
            plain[record.quantity] = max(record.value, plain.get(record.quantity, 0.0))
    found: Values = {}
    for record in records:
        if record.contender == PLAIN:
            continue
        value = record.value
        if record.quantity in EFFICIENCIES:
            value /= plain[record.quantity]
        found.setdefault((record.contender, record.quantity), []).append(value)
    return found


def noise(records: Iterable[Record]) -> str:
    """How much of the machine there was: what two plain processes did in each round."""
    records = list(records)
    rates = [record.value for record in records if (record.contender, record.quantity) == (PLAIN, "spin")]
    busy = [record.value for record in records if record.quantity == "busy"]
    if not rates:
        return ""
    return (
        f"{len(rates)} rounds; two processes that compute alone got {short(min(rates) / IDEAL * 100)} to "
        f"{short(max(rates) / IDEAL * 100)} % of two processors; before its turn a contender found "
        f"{short(max(busy, default=0.0) * 100)} % of them busy at most"
    )


def contest_table(values: Values) -> Iterator[str]:
    """Markdown: medians, and the lowest and highest round where there were several."""
    yield "| | " + " | ".join(quantity.title for quantity in QUANTITIES) + " |"
    yield "|---" * (len(QUANTITIES) + 1) + "|"
    for entrant in ENTRANTS:
        cells = [_cell(values.get((entrant.name, quantity.key), [])) for quantity in QUANTITIES]
        if any(cells):
            yield f"| {entrant.name} | " + " | ".join(cells) + " |"


def _cell(found: list[float]) -> str:
    if not found:
        return ""
    median = short(statistics.median(found))
    return median if len(found) == 1 else f"{median} ({short(min(found))}-{short(max(found))})"


def goals_table(values: Values) -> Iterator[str]:
    """Markdown: ours, the fastest peer's, the ratio, the goal, and whether it is met."""
    yield "| | batchflow | the best peer | ratio | goal | met |"
    yield "|---|---|---|---|---|---|"
    for goal in GOALS:
        quantity = next(quantity for quantity in QUANTITIES if quantity.key == goal.key)
        ours, best = values.get((OURS, goal.key)), _best(values, quantity)
        if ours is not None:
            yield _goal_row(goal, quantity, statistics.median(ours), best)


def _goal_row(goal: Goal, quantity: Quantity, ours: float, best: tuple[float, str] | None) -> str:
    theirs = "" if best is None else f"{short(best[0])} ({best[1]})"
    ratio = "" if best is None else f"{ours / best[0]:.2f}"
    side = "at least" if quantity.more_is_better else "at most"
    wanted = f"{side} {short(goal.bound)}" + (" x" if goal.of_the_best else "")
    if goal.of_the_best and best is None:
        return f"| {quantity.title} | {short(ours)} | | | {wanted} | no peer |"
    measured = ours / best[0] if goal.of_the_best and best is not None else ours
    met = measured >= goal.bound if quantity.more_is_better else measured <= goal.bound
    return f"| {quantity.title} | {short(ours)} | {theirs} | {ratio} | {wanted} | {'yes' if met else 'no'} |"


def _best(values: Values, quantity: Quantity) -> tuple[float, str] | None:
    """Of the peers: what has no broker and no second machine is not among them."""
    medians = [
        (statistics.median(found), contender)
        for (contender, key), found in values.items()
        if key == quantity.key and contender not in (OURS, LIMIT)
    ]
    if not medians:
        return None
    return max(medians) if quantity.more_is_better else min(medians)
