"""What `make bench` runs.

The contest first: batchflow and its peers in alternation, on the same workloads, with ratios and goals. Then
what only batchflow has, case by case. With names, only these cases; `contest` is one of them.
"""

from __future__ import annotations

import argparse
import asyncio
import compileall
import tempfile
from dataclasses import replace
from pathlib import Path

import batchflow
import node_agent
from tests.benchmarks import contest, table
from tests.benchmarks.cases import ALONE, FULL, QUICK, WARM, Effort, warm
from tests.benchmarks.harness import HEADING, machine

CONTEST = "contest"
NOBODY = "none"


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    found.add_argument("--quick", action="store_true", help="a short run, to see that everything works")
    found.add_argument(
        "--peers",
        nargs="*",
        default=[],
        metavar="WORD",
        help=f"only contenders whose names contain one of these; `{NOBODY}`: batchflow alone",
    )
    found.add_argument("--rounds", type=int, help="rounds of the contest")
    found.add_argument("--record", type=Path, metavar="FILE", help="add to what FILE holds of earlier rounds")
    found.add_argument(
        "--before",
        type=Path,
        metavar="CHECKOUT",
        help="measure idle, sessions and nodes in this other checkout, with its .venv, as well",
    )
    found.add_argument("--report", action="store_true", help="measure nothing, print the tables of --record")
    found.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join([CONTEST, *ALONE, *WARM])}")
    return found


def compile_our_own() -> None:
    """As pip does with what it installs, the peers among it: a checkout may have no bytecode, or old one."""
    for package in (batchflow, node_agent):
        for folder in package.__path__:
            compileall.compile_dir(folder, quiet=1)


def run_contest(options: argparse.Namespace, record: Path) -> None:
    """Measure the rounds, and print the tables of all rounds on record."""
    before = table.read(record) if record.exists() else []
    first = 1 + max((entry.round for entry in before), default=0)
    sizes = contest.QUICK if options.quick else contest.FULL
    count = 0 if options.report else options.rounds or (1 if options.quick else 3)
    for found in contest.rounds(contest.chosen(options.peers), sizes, range(first, first + count)):
        if isinstance(found, str):
            print(found, flush=True)
        else:
            table.append(record, found)
    records = table.read(record)
    values = table.values_of(records)
    print(table.noise(records), "", sep="\n")
    print(*table.contest_table(values), "", *table.goals_table(values), "", sep="\n", flush=True)


async def run_warm(names: list[str], effort: Effort) -> None:
    async for figure in warm(names, effort):
        print(figure, flush=True)


def run_cases(names: list[str], effort: Effort) -> None:
    """What only batchflow has."""
    if set(names) & {*ALONE, *WARM}:
        print(HEADING)
    for name in ALONE:
        if name in names:
            for figure in ALONE[name](effort):
                print(figure, flush=True)
    if warm_names := [name for name in WARM if name in names]:
        asyncio.run(run_warm(warm_names, effort))


def main() -> None:
    arguments = parser()
    options = arguments.parse_args()
    every = [CONTEST, *ALONE, *WARM]
    if unknown := set(options.cases) - set(every):
        arguments.error(f"unknown: {', '.join(sorted(unknown))}")
    if options.report and options.record is None:
        arguments.error("--report needs --record")
    cases = [CONTEST] if options.report else options.cases or every
    compile_our_own()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        if CONTEST in cases:
            run_contest(options, options.record or Path(folder) / "records.jsonl")
    run_cases(cases, replace(QUICK if options.quick else FULL, before=options.before))
    print(machine())


if __name__ == "__main__":
    main()
