"""Telling the living from the dead."""

from __future__ import annotations

from pathlib import Path


def is_alive(pid: int) -> bool:
    """Whether that process runs. The dead stay in the table for as long as nobody looks after them."""
    return born(pid) is not None


def born(pid: int) -> int | None:
    """When the process began, in the kernel's ticks: a number may be another's later. None for the dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
