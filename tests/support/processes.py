"""What a test asks of a process beside whether it lives."""

from __future__ import annotations

from batchflow.support.linux import read_stat


def born(pid: int) -> int | None:
    """When a living process began, in ticks of the kernel: its pid may be another's later."""
    stat = read_stat(pid)
    return None if stat is None or stat.is_dead else stat.started_at
