"""All processes below this one: found in /proc, killed whatever they do.

For a child subreaper: what loses its parent comes to it, so whatever its children started is below it, in
whatever session and group it may be. Standard library only, no event loop.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress

TYPE_CHECKING = False  # see `node_agent.system.plain_log`
if TYPE_CHECKING:
    from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_PAUSE: Final = 0.005


def adopt_orphans() -> None:
    """Become the parent of descendants that lose theirs."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def signal_on_parents_death(number: signal.Signals) -> None:
    """Have the kernel send it when the parent ends."""
    _prctl(_PR_SET_PDEATHSIG, number)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")


def descendants(root: int) -> set[int]:
    """The pids of all living processes below `root`."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal() and (parent := _parent(name)) is not None:
            children.setdefault(parent, []).append(int(name))
    found: set[int] = set()
    fresh = [root]
    while fresh:
        below = children.get(fresh.pop(), [])
        found.update(below)
        fresh += below
    return found


def _parent(pid: str) -> int | None:
    """None for a process that has ended, buried or not."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
            fields = stat.read(1024).rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[1])


def kill_descendants(bound: float = 10.0) -> set[int]:
    """Kill them all, and bury those that are children; who is left after `bound` seconds.

    They are stopped first, until no new one appears, so that none forks away meanwhile.
    """
    until = time.monotonic() + bound
    while (found := _stop_all(until)) and time.monotonic() < until:
        _signal(found, signal.SIGKILL)
        reap()
        time.sleep(_PAUSE)
    reap()
    return found


def _stop_all(until: float) -> set[int]:
    stopped: set[int] = set()
    while time.monotonic() < until:
        fresh = (found := descendants(os.getpid())) - stopped
        if not fresh:
            return found
        _signal(fresh, signal.SIGSTOP)
        stopped |= fresh
    return stopped


def _signal(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def reap() -> dict[int, int]:
    """Wait for every child that has ended: wait status by pid."""
    buried: dict[int, int] = {}
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            buried[pid] = status
    return buried
