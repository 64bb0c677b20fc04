"""The benchmarks run; what they measure is nobody's test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_quick_run_prints_its_figures() -> None:
    """Every case runs, on little work, and prints a line for what it measured."""
    finished = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", "--quick", "--peers", "none"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    for figure in (
        "| batchflow |",
        "| no peer |",
        "import batchflow",
        "first result",
        "round trip",
        "lone submit",
        "no-ops through map",
        "credits of a no-op",
        "with a task of",
        "resident",
    ):
        assert figure in finished.stdout
