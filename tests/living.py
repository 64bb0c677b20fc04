"""Telling the living from the dead."""

from __future__ import annotations

from pathlib import Path


def is_alive(pid: int) -> bool:
    """Whether that process runs. The dead stay in the table for as long as nobody looks after them."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in (b"Z", b"X")
