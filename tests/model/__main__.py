"""`python -m tests.model`: plays the small scenarios in every order, or large ones by chance.

`small` walks each small scenario's decisions to the end of the bounds; `random` plays scenarios by seeds
until so many tasks and faults are reached. Both end with status 1 when the promise was broken, having told
the seed, or the decisions, that repeat it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.model.choices import Chance, Scripted, explore
from tests.model.scenario import Scenario, play
from tests.model.scenarios import SMALL, by_seed

_RUN = 5000
"""Tasks of one run."""
_STEPS_A_TASK = 4
"""About as many, at least: that many chances of a fault."""


def main() -> int:
    options = _options()
    return _small(options) if options.what == "small" else _random(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    kinds = parser.add_subparsers(dest="what", required=True)
    small = kinds.add_parser("small", help="every order of the small scenarios")
    small.add_argument("--faults", type=int, default=1, help="in a run, at most (default: 1)")
    small.add_argument("--departures", type=int, default=0, help="from the default order (default: 0)")
    small.add_argument("--only", choices=SMALL, help="one scenario")
    chance = kinds.add_parser("random", help="larger scenarios by chance")
    chance.add_argument("--tasks", type=int, default=100_000)
    chance.add_argument("--faults", type=int, default=1_000)
    chance.add_argument("--seed", type=int, default=0, help="the first one")
    chance.add_argument("--run", type=int, default=_RUN, help=f"tasks of one seed (default: {_RUN})")
    return parser.parse_args()


def _small(options: argparse.Namespace) -> int:
    broken = 0
    for name, scenario in SMALL.items():
        if options.only in (None, name):
            broken += _walk(name, scenario, options.faults, options.departures)
    return broken > 0


def _walk(name: str, scenario: Scenario, faults: int, departures: int) -> int:
    """How many orders broke the promise."""
    started = time.monotonic()
    totals: Counter[str] = Counter()

    def run(choices: Scripted) -> None:
        checker = play(scenario, choices).checker
        totals.update(faults=checker.faults.total(), orders=1)
        if not checker.holds:
            totals["broken"] += 1
            _say(f"{name}: {checker.told} by {[answer for answer, _ in choices.asked]}")

    for _ in explore(run, faults=faults, departures=departures):
        pass
    took = time.monotonic() - started
    _say(
        f"{name}: up to {faults} faults, {departures} departures: {totals['orders']} orders, "
        f"{totals['faults']} faults, {totals['broken']} broken, {took:.1f} s"
    )
    return totals["broken"]


def _random(options: argparse.Namespace) -> int:
    started = time.monotonic()
    totals: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    seed = options.seed
    while totals["tasks"] < options.tasks:
        tasks = min(options.run, options.tasks - totals["tasks"])
        due = options.faults * (totals["tasks"] + tasks) / options.tasks
        most = max(0, round(due) - faults.total())
        outcome = play(by_seed(seed, tasks), Chance(seed, most / tasks / _STEPS_A_TASK, most))
        checker = outcome.checker
        totals.update(tasks=checker.accepted, shown=checker.shown, again=checker.shown_again, runs=1)
        totals.update(steps=outcome.moves, broken=not checker.holds)
        faults.update(checker.faults)
        if not checker.holds:
            _say(f"seed {seed}, {tasks} tasks, {most} faults: {checker.summary()}: {checker.told}")
        seed += 1
        if seed % 10 == 0:
            _say(f"... {totals['tasks']} tasks, {faults.total()} faults, {totals['broken']} runs broken")
    _say(f"seeds {options.seed} to {seed - 1} in {time.monotonic() - started:.0f} s: {dict(totals)}")
    for what, number in faults.most_common():
        _say(f"{number:8} {what}")
    _say(f"{faults.total():8} faults in all")
    return totals["broken"] > 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
