"""`python -m tests.chaos`: real processes under fire; ends with status 1 when the promise was broken."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.run import Plan, recovery, run, save, summary


def main() -> int:
    options = _options()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    _say(f"seed {seed}")
    disk = 0 if os.geteuid() else options.disk  # to mount one needs root
    plan = Plan(
        options.tasks,
        options.faults,
        seed,
        lock=options.lock,
        clients=options.clients,
        graphs=options.graphs,
        kill_clients=not options.spare_clients,
        disk=disk,
    )
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        if options.recovery:
            for seconds in asyncio.run(recovery(plan, Path(directory), options.recovery)):
                _say(f"lock {plan.lock:.0f} s: outcome {seconds:.1f} s after the kill, work left out")
            return 0
        log = asyncio.run(run(plan, Path(directory)))
    if options.history is not None:
        save(log, options.history)
    _say(f"{summary(log)}\nin {time.monotonic() - started:.0f} s")
    return not log.checker.holds


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--graphs", type=int, default=1, help="clients whose tasks wait for others")
    parser.add_argument("--seed", type=int, help="default: any")
    parser.add_argument("--lock", type=float, default=5.0, help="seconds of the queues' locks (default: 5)")
    parser.add_argument("--spare-clients", action="store_true", help="kill no clients")
    parser.add_argument("--disk", type=int, default=256, help="MiB of the nodes' disk (root)")
    parser.add_argument("--history", type=Path, help="a file for the history")
    parser.add_argument("--recovery", type=int, metavar="N", help="only measure N recoveries")
    return parser.parse_args()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
