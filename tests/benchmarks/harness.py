"""Measures and prints; judges nothing. A figure is its values with their median and spread."""

from __future__ import annotations

import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from batchflow.support.linux import process_table

if TYPE_CHECKING:
    from collections.abc import Sequence

MEGABYTE = 1 << 20
SETTLED = 1.0
"""Seconds after the first tasks: what a contender loads behind its first result is no part of its work."""
AT_REST = 3.0
"""Seconds after the last task until memory is weighed: what is kept, and not what was just let go."""
QUIET_SECONDS = 0.5
QUIET_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured, once for each value."""

    name: str
    values: Sequence[float]
    unit: str
    at_most: float | None = None
    """The goal for the median, if there is one."""
    at_least: float | None = None

    @property
    def goal(self) -> str:
        """What it shall be, and whether it is."""
        median = statistics.median(self.values)
        if self.at_most is not None:
            return f"at most {short(self.at_most)}: {'met' if median <= self.at_most else 'MISSED'}"
        if self.at_least is not None:
            return f"at least {short(self.at_least)}: {'met' if median >= self.at_least else 'MISSED'}"
        return ""

    def __str__(self) -> str:
        values = sorted(self.values)
        columns = [statistics.median(values), percentile(values, 0.99), values[0], values[-1]]
        numbers = "".join(f"{number:>11}" for number in map(short, columns))
        return f"{self.name:<58}{numbers}  {self.unit:<8}{len(values):>6}  {self.goal}".rstrip()


HEADING = f"{'':<58}{'median':>11}{'p99':>11}{'min':>11}{'max':>11}  {'unit':<8}{'n':>6}  goal"


def short(number: float) -> str:
    """Three digits that count, without an exponent."""
    magnitude = abs(number)
    digits = 0 if magnitude >= 100 else 1 if magnitude >= 10 else 2 if magnitude >= 1 else 3
    return f"{number:,.{digits}f}"


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which that share of them lies (nearest rank)."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def machine() -> str:
    """What the figures were taken on."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return (
        f"{len(os.sched_getaffinity(0))} cores, {model}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, load {load}"
    )


def until_quiet(limit: float) -> float:
    """Wait until others leave the processors alone; returns the share of them that is busy all the same."""
    until = time.monotonic() + limit
    while True:
        busy = _busy(QUIET_SECONDS)
        if busy <= QUIET_SHARE or time.monotonic() > until:
            return busy


def _busy(seconds: float) -> float:
    total, idle = _jiffies()
    time.sleep(seconds)
    later, later_idle = _jiffies()
    return 1.0 - (later_idle - idle) / max(1, later - total)


def _jiffies() -> tuple[int, int]:
    """Of all processors since the machine was started: all, and idle."""
    first, _, _ = Path("/proc/stat").read_text(encoding="utf-8").partition("\n")
    spent = [int(word) for word in first.split()[1:9]]
    return sum(spent), spent[3] + spent[4]


@dataclass(frozen=True, slots=True)
class Process:
    """A process and the memory it holds, in bytes."""

    pid: int
    command: str
    resident: int
    proportional: int
    """Shared pages counted in shares."""


def process_tree(*roots: int) -> list[Process]:
    """The processes and all that descend from them."""
    parents = {pid: stat.parent for pid, stat in process_table().items()}
    tree = set(roots)
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in tree} - tree
        tree |= more
        grown = bool(more)
    return [process for pid in sorted(tree) if (process := _describe(pid)) is not None]


def _describe(pid: int) -> Process | None:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in rollup.splitlines()[1:]}
    return Process(pid, command.strip(), sizes["Rss"], sizes["Pss"])
