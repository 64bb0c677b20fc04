"""`python -m tests.benchmarks [--quick] [CASE ...]`: what `make bench` runs."""

from __future__ import annotations

import argparse
import asyncio

from tests.benchmarks.cases import ALONE, FULL, QUICK, WARM, Effort, warm
from tests.benchmarks.harness import HEADING, machine


async def run_warm(names: list[str], effort: Effort) -> None:
    async for figure in warm(names, effort):
        print(figure, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short run, to see that everything works")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join([*ALONE, *WARM])}")
    options = parser.parse_args()
    if unknown := set(options.cases) - {*ALONE, *WARM}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    effort = QUICK if options.quick else FULL
    chosen = options.cases or [*ALONE, *WARM]
    print(machine())
    print(HEADING)
    for name in ALONE:
        if name in chosen:
            for figure in ALONE[name](effort):
                print(figure, flush=True)
    if names := [name for name in WARM if name in chosen]:
        asyncio.run(run_warm(names, effort))
    print(machine())


if __name__ == "__main__":
    main()
