"""Linux process control that the standard library lacks: prctl, /proc, and process trees.

A process tree is found through /proc. A process that starts a session of its own, or whose parent died,
leaves its group but not its tree, as long as the tree's root is a *child subreaper*: orphans below a
subreaper become its children (prctl(2), PR_SET_CHILD_SUBREAPER). So a root that made itself a subreaper can
end everything that was ever started below it.

Standard library only, without `typing`, `logging` and `asyncio`: supervisors, reapers and Python children
start from this module and have to stay small. ctypes is loaded by the first system call.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from functools import cache

TYPE_CHECKING = False  # without `typing`, see above
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_CLONE_NEWUTS: Final = 0x04000000
_CLONE_NEWUSER: Final = 0x10000000
_PAUSE: Final = 0.005
"""Seconds between two kills of a process tree."""


@cache
def _system_call(name: str) -> Callable[..., None]:
    """Return a function of the C library as one that raises OSError when its result is not 0."""
    import ctypes

    function = getattr(ctypes.CDLL(None, use_errno=True), name)

    def call(*arguments: int | bytes) -> None:
        if function(*[each if isinstance(each, bytes) else ctypes.c_ulong(each) for each in arguments]) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")

    return call


def set_parent_death_signal(number: int = signal.SIGKILL) -> None:
    """Have the kernel send a signal to this process when the thread that started it ends. Raises OSError.

    The setting survives exec, except of set-uid programs. Children do not inherit it, and a change of
    credentials clears it. The parent may have died before the call, so compare `os.getppid()` afterwards.
    """
    _system_call("prctl")(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def children_are_ignored() -> bool:
    """Return whether this process ignores SIGCHLD, so that the kernel reaps its children unseen.

    Their exit codes are then lost, and Python reports 0 or 255 for any. Its children inherit this.
    """
    return signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN


def heed_children() -> None:
    """Let this process learn how its children end, whatever it inherited. To be called in the main thread."""
    if children_are_ignored():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def become_subreaper() -> None:
    """Make this process the parent of every orphan below it, which it has to reap. Raises OSError."""
    _system_call("prctl")(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def enter_uts_namespace(host_name: str) -> bool:
    """Give this process and its later children a host name of their own. False where the kernel refuses.

    A privileged process gets a UTS namespace alone. Another one also gets a user namespace, in which its user
    and group ids stay the same and no other exists.
    """
    try:
        try:
            _system_call("unshare")(_CLONE_NEWUTS)
        except PermissionError:
            _enter_user_namespace(also=_CLONE_NEWUTS)
        name = host_name.encode()
        _system_call("sethostname")(name, len(name))  # `socket.sethostname` would load `socket`
    except OSError:
        return False
    return True


def _enter_user_namespace(also: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    _system_call("unshare")(_CLONE_NEWUSER | also)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


class ProcessStat:
    """A line of the process table; see proc_pid_stat(5)."""

    __slots__ = ("parent", "session", "started_at", "state", "threads")

    def __init__(self, fields: list[bytes]) -> None:
        """Parse a line. `fields`: those after the command's name."""
        self.state = fields[0]
        """One letter: R, S, D, T, Z, X and others."""
        self.parent = int(fields[1])
        self.session = int(fields[3])
        self.threads = int(fields[17])
        self.started_at = int(fields[19])
        """Ticks of the kernel's clock. Pid and start together name a process for good."""

    @property
    def is_dead(self) -> bool:
        """Whether the process has ended, reaped or not."""
        return self.state in (b"Z", b"X")


def read_stat(pid: int | str) -> ProcessStat | None:
    """Read a process's line of the process table; None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
            # The command's name is in parentheses and may itself hold parentheses and spaces.
            return ProcessStat(stat.read(1024).rpartition(b")")[2].split())
    except OSError:
        return None


def process_table(lowest: int = 0) -> dict[int, ProcessStat]:
    """Read the process table, without the pids below `lowest`."""
    table = {}
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) >= lowest and (stat := read_stat(name)) is not None:
            table[int(name)] = stat
    return table


def resident_memory(pid: int | str = "self") -> int:
    """Read the bytes of a process's resident memory, shared pages included. Raises OSError."""
    return _memory(pid, column=1)


def private_memory(pid: int | str = "self") -> int:
    """Read the bytes of a process's resident memory that belong to no file. Raises OSError."""
    return _memory(pid, column=1) - _memory(pid, column=2)


def data_memory(pid: int | str = "self") -> int:
    """Read the bytes of a process's data and stack, which RLIMIT_DATA bounds. Raises OSError."""
    return _memory(pid, column=5)


def _memory(pid: int | str, column: int) -> int:
    """Read a field of proc_pid_statm(5), in bytes."""
    with open(f"/proc/{pid}/statm", "rb", buffering=0) as statm:
        return int(statm.read(256).split()[column]) * os.sysconf("SC_PAGE_SIZE")


def descendants(pid: int) -> list[int]:
    """List the living processes below `pid`, parents before their children.

    A snapshot: a process that forks meanwhile may be missing, so the end of a tree takes several.
    """
    table = process_table()
    children: dict[int, list[int]] = {}
    for each, stat in table.items():
        children.setdefault(stat.parent, []).append(each)
    found: list[int] = []
    pending = [pid]
    while pending:
        below = children.get(pending.pop(), [])
        pending += below
        found += [each for each in below if not table[each].is_dead]
    return found


def signal_all(pids: Iterable[int], number: int) -> None:
    """Send a signal to those that still exist, the oldest first: a parent gets it before its child ends."""
    for pid in sorted(pids):
        with suppress(OSError):
            os.kill(pid, number)


def kill_descendants(pid: int | None = None, within: float = 10.0) -> list[int]:
    """Kill all processes below `pid`, until none is found; return those that are left after `within` seconds.

    They are stopped first, until no new one appears, so that none forks away meanwhile. Without a `pid` it
    kills the descendants of this process, and reaps its children.
    """
    root = os.getpid() if pid is None else pid
    until = time.monotonic() + within
    while (found := _stop_descendants(root, until)) and time.monotonic() < until:
        signal_all(found, signal.SIGKILL)
        if pid is None:
            reap()
        time.sleep(_PAUSE)
    if pid is None:
        reap()
    return found


def _stop_descendants(root: int, until: float) -> list[int]:
    stopped = set[int]()
    while (fresh := set(found := descendants(root)) - stopped) and time.monotonic() < until:
        signal_all(fresh, signal.SIGSTOP)
        stopped |= fresh
    return found


def kill_tree(pid: int, within: float = 5.0) -> list[int]:
    """Kill all processes below `pid`, then `pid` itself; return those below it that are left."""
    left = kill_descendants(pid, within)
    signal_all([pid], signal.SIGKILL)
    return left


def reap() -> dict[int, int]:
    """Wait for every child that has ended; return wait status by pid."""
    statuses: dict[int, int] = {}
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            statuses[ended[0]] = ended[1]
    return statuses
