"""`python -m tests.fuzz`: gives made-up bytes to every parser of the local cloud, guided by what they reach.

Atheris makes the inputs (libFuzzer beneath it). A finding is an error that is no refusal, or an input over
its budget of time and memory. Its bytes are kept in the corpus' folder, and the status is 1.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from pathlib import Path

_MEMORY_EVERY = 500
_MEGABYTES = 1_024
_MAX_LENGTH = 8_192


def main() -> int:
    options = _options()
    if options.worker:
        _fuzz(options.worker, options.seconds, options.corpus / options.worker, options.seed)
    from tests.fuzz.targets import TARGETS

    found = []
    for name in options.target or TARGETS:
        (options.corpus / name).mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tests.fuzz", "--worker", name, "--corpus", str(options.corpus)]
        command += ["--seconds", str(options.seconds), "--seed", str(options.seed)]
        log = options.corpus / f"{name}.log"
        with log.open("wb") as output:
            status = subprocess.run(command, stdout=output, stderr=output, check=False).returncode
        runs = [
            line for line in log.read_text(errors="replace").splitlines() if line.startswith(("Done", "#"))
        ]
        sys.stdout.write(
            f"{name}: {'FOUND, see ' + str(log) if status else 'nothing'} ({runs[-1] if runs else ''})\n"
        )
        sys.stdout.flush()
        found += [name] if status else []
    return bool(found)


def _fuzz(name: str, seconds: int, corpus: Path, seed: int) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["batchflow.local"]):
        from tests.fuzz.budget import check, check_memory
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    for number, data in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(data)
    turns = itertools.count()

    def one(data: bytes) -> None:
        check(target, data)
        if not next(turns) % _MEMORY_EVERY:
            check_memory(target, data)

    limits = [
        f"-max_total_time={seconds}",
        f"-max_len={_MAX_LENGTH}",
        f"-rss_limit_mb={_MEGABYTES}",
        "-timeout=10",
    ]
    more = [f"-artifact_prefix={corpus}/finding-", "-print_final_stats=1", f"-seed={seed}"]
    atheris.Setup([sys.argv[0], *limits, *more, str(corpus)], one)
    atheris.Fuzz()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", help="default: all, one after the other")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="0: any")
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz"), help="default: build/fuzz")
    parser.add_argument("--worker", metavar="TARGET", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
