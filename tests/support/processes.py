"""What tests ask of a process besides whether it lives."""

from __future__ import annotations

from batchflow.support.linux import read_stat


def is_alive(pid: int) -> bool:
    """Tell whether a process exists and has not ended. A zombie has ended."""
    stat = read_stat(pid)
    return stat is not None and not stat.is_dead


def started_at(pid: int) -> int | None:
    """Return when a living process started, in ticks of the kernel. A later process may have its pid."""
    stat = read_stat(pid)
    return None if stat is None or stat.is_dead else stat.started_at
