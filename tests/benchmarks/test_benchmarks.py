"""The benchmarks run; what they measure is nobody's test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.benchmarks import contest, table
from tests.benchmarks.cases import ALONE, WARM
from tests.benchmarks.contest import Record
from tests.benchmarks.harness import Figure

ROOT = Path(__file__).parents[2]


SCALE = ("idle", "sessions", "switch", "sharing")
"""Cases that run beside the others in a test of their own, because each takes a cloud or several."""

LONG = ("arrays", "cancellation", "latency", "long", "many", "nodes", "pi", "recovery", "sdk", "workflows")
"""Cases that take long even on little work. They are made as the others are, and differ in what they run."""

NETWORK = ("packages",)
"""Cases that need an index of packages, which a test has not."""


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("cases", "figures"),
    [
        (
            sorted({"contest", *ALONE, *WARM} - {*SCALE, *NETWORK, *LONG}),
            (
                *("| batchflow |", "| no peer |", "import batchflow", "first result", "round trip"),
                *("lone submit", "no-ops through map", "credits of a no-op"),
                *("memory of an outstanding task", "resident"),
                *("function of the file's rate", "two plain processes"),
            ),
        ),
        (
            SCALE,
            ("idle agent", "of the rate of one", "new sessions", "Jain's index"),
        ),
    ],
    ids=["speed", "scale"],
)
def test_quick_run_prints_a_line_for_each_figure(cases: Sequence[str], figures: Sequence[str]) -> None:
    """Cases of every kind run, on little work; the rest with `make bench ARGS=--quick`."""
    finished = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", "--quick", *cases, "--peers", "none"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    for figure in figures:
        assert figure in finished.stdout


def test_tables_compare_with_the_best_peer() -> None:
    """Plain processes set the measure of efficiency; the local limit is no peer."""
    found = [
        Record(number, contender, quantity, value, 0.0)
        for number, contender, quantity, value in (
            (1, contest.PLAIN, "spin", 2000.0),
            (2, contest.PLAIN, "spin", 1000.0),
            (1, contest.OURS, "spin", 1800.0),
            (2, contest.OURS, "spin", 1400.0),
            (1, contest.OURS, "bulk", 1000.0),
            (1, contest.LIMIT, "bulk", 900.0),
            (1, "saq", "bulk", 100.0),
            (1, "Ray", "bulk", 200.0),
        )
    ]
    values = table.values_of(found)
    assert values[contest.OURS, "spin"] == [0.9, 0.7]
    rows = list(table.goals_table(values))
    assert "| no-ops in bulk /s | 1,000 | 200 (Ray) | 5.00 | at least 8.00 x | no |" in rows
    assert "| 1 ms of CPU, efficiency | 0.800 |  |  | at least 0.800 | yes |" in rows
    assert "2 rounds" in table.noise(found)
    assert "50.0 to 100 %" in table.noise(found)


def test_records_of_one_run_are_read_by_another(tmp_path: Path) -> None:
    """They are written to a file."""
    records = [Record(1, "saq", "bulk", 100.0, 1.5), Record(2, "saq", "p50", 2.0, 2.5)]
    for record in records:
        table.append(tmp_path / "rounds.jsonl", record)
    assert table.read(tmp_path / "rounds.jsonl") == records


def test_figure_says_whether_its_median_meets_the_goal() -> None:
    """The goal is an upper or a lower bound."""
    assert Figure("x", [1.0, 1.1, 9.0], "s", at_most=1.2).goal == "at most 1.20: met"
    assert Figure("x", [0.7], "", at_least=0.8).goal == "at least 0.800: MISSED"
    assert Figure("x", [0.7], "").goal == ""


def test_failed_contender_is_reported_with_its_last_words() -> None:
    """The others go on."""
    nobody = contest.Entrant("nobody", "on_nobody.py", "no_such_module")
    broken = contest.Entrant("broken", "on_broken.py", "sys", is_own=True)
    told = [said for said in contest.rounds([nobody, broken], contest.QUICK, [1]) if isinstance(said, str)]
    assert told[0] == "nobody: not installed"
    assert told[1].startswith("broken, round 1: ended:")
    assert "on_broken.py" in told[1]
