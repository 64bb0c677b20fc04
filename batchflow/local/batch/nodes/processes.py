"""Linux process control that the standard library lacks: who dies with whom, and who is whose child.

A process tree is found through /proc. A process that starts a session of its own, or whose parent died,
leaves its group but not its tree, as long as the tree's root is a *child subreaper*: orphans below a
subreaper become its children (prctl(2), PR_SET_CHILD_SUBREAPER). So a root that made itself a subreaper can
end everything that was ever started below it.

Importing this module loads nothing but the standard library's basics; ctypes comes with the first system
call.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from functools import cache

TYPE_CHECKING = False  # every reaper holds what is imported here
if TYPE_CHECKING:
    import ctypes
    from collections.abc import Iterator

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWUSER = 0x10000000
_PASS_INTERVAL = 0.005
_DEAD = frozenset("ZX")


@cache
def _libc() -> ctypes.CDLL:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _system_call(name: str, *args: int) -> None:
    import ctypes

    if getattr(_libc(), name)(*(ctypes.c_ulong(arg) for arg in args)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def set_parent_death_signal(signum: int = signal.SIGKILL) -> None:
    """Have the kernel send `signum` to this process when the thread that started it ends.

    Kept over exec, except of set-uid programs; not inherited by children; cleared by a change of credentials,
    so call it after those. The parent may have died before the call: compare `os.getppid()` with the parent
    that you expect right after it. Raises OSError.
    """
    _system_call("prctl", _PR_SET_PDEATHSIG, signum, 0, 0, 0)


def become_subreaper() -> None:
    """Make this process the parent of every orphan below it; it has to reap them. Raises OSError."""
    _system_call("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def enter_uts_namespace(host_name: str) -> bool:
    """Give this process, and what it will start, a host name of its own. False where the kernel refuses.

    A privileged process gets a UTS namespace alone; another one also gets a user namespace, in which its user
    and group ids stay the same and no other exists.
    """
    try:
        try:
            _system_call("unshare", _CLONE_NEWUTS)
        except PermissionError:
            _enter_user_namespace(also=_CLONE_NEWUTS)
        _set_host_name(host_name.encode())
    except OSError:
        return False
    return True


def _enter_user_namespace(also: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    _system_call("unshare", _CLONE_NEWUSER | also)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _set_host_name(name: bytes) -> None:
    """As socket.sethostname does, without what `socket` weighs."""
    import ctypes

    if _libc().sethostname(name, ctypes.c_size_t(len(name))) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"sethostname: {os.strerror(number)}")


def is_alive(pid: int) -> bool:
    """Whether a process `pid` exists and has not ended (a zombie has)."""
    stat = _stat(pid)
    return stat is not None and stat[0] not in _DEAD


def descendants(pid: int) -> list[int]:
    """The living processes below `pid`, parents before their children, `pid` itself left out.

    A snapshot: a process that forks meanwhile may be missed, so who wants to end them all repeats it.
    """
    children: dict[int, list[int]] = {}
    states: dict[int, str] = {}
    for process, (state, parent) in _all_stats():
        children.setdefault(parent, []).append(process)
        states[process] = state
    found: list[int] = []
    pending = [pid]
    while pending:
        below = children.get(pending.pop(), [])
        pending.extend(below)
        found.extend(process for process in below if states[process] not in _DEAD)
    return found


def signal_all(pids: list[int], signum: int) -> None:
    """Send `signum` to each process that still exists and may be signalled."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)


def kill_tree(pid: int, *, include_root: bool = True, within: float = 5.0) -> list[int]:
    """Kill everything below `pid`, and `pid` itself last; return what still lived after `within` seconds.

    Blocks; reaps nothing. Without a subreaper at the root, a process whose parent has died is not found.
    """
    deadline = time.monotonic() + within
    while remaining := descendants(pid):
        signal_all(remaining, signal.SIGKILL)
        if time.monotonic() > deadline:
            break
        time.sleep(_PASS_INTERVAL)
    if include_root:
        signal_all([pid], signal.SIGKILL)
    return remaining


def _all_stats() -> Iterator[tuple[int, tuple[str, int]]]:
    with os.scandir("/proc") as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    for pid in pids:
        stat = _stat(pid)
        if stat is not None:
            yield pid, stat


def _stat(pid: int) -> tuple[str, int] | None:
    """State and parent of a process; None when there is none. See proc_pid_stat(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name is in parentheses and may itself hold parentheses and spaces.
    state, parent, *_ = text.rpartition(")")[2].split()
    return state, int(parent)
