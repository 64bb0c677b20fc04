"""What tests ask of a process besides whether it lives."""

from __future__ import annotations

from batchflow.support.linux import read_stat


def started_at(pid: int) -> int | None:
    """Return when a living process started, in ticks of the kernel. A later process may have its pid."""
    stat = read_stat(pid)
    return None if stat is None or stat.is_dead else stat.started_at
