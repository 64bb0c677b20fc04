"""Processes that can be killed, whatever they do: how they are started, found and ended.

Started: in a session of their own, with SIGKILL on the agent's death (PR_SET_PDEATHSIG), and favoured by the
kernel's out-of-memory killer over the agent. The death signal is set by util-linux's `setpriv`, which costs
the agent nothing; a `preexec_fn`, the way out where there is no `setpriv`, makes the agent fork with all its
pages (2 ms at 60 MB, 5 ms at 300 MB, with the event loop standing still).

Found: a task's processes are its root and all descendants of it, all members of the root's session, and all
orphans that carry the slot's mark in their environment (the agent is a child subreaper, so orphans become its
children) with their descendants. A process that left session, parent and environment behind is no longer
found here; it ends when its subreaper does.

Ended: SIGSTOP for all until no new one appears, so that nothing forks away meanwhile, then SIGKILL for all.
Signals go through pidfds, and so never to a process that merely got the same number.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

MARK: Final = "BATCHFLOW_SLOT"
"""The environment variable by which the orphans of a slot are known."""
_PRIVATE_PREFIX: Final = "BATCHFLOW_"
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_OOM_SCORE: Final = b"500"
_FREEZE_ROUNDS: Final = 100
_BURIAL_BOUND: Final = 1.0
"""Seconds for an orphan to come to us after its end."""
_BURIAL_PAUSE: Final = 0.002
DEATH_BOUND: Final = 5.0
"""Seconds that a killed process may take to be gone before we stop waiting for it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the process table."""

    parent: int
    session: int
    zombie: bool


@cache
def adopt_orphans() -> None:
    """Make this process the one that orphans among its descendants become children of. Once is enough.

    Called in a running event loop, which is made to wait for processes without threads.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _wait_by_pidfd()


def _wait_by_pidfd() -> None:
    """Before 3.12, asyncio waits for each process in a thread of its own unless told otherwise."""
    policy = asyncio.get_event_loop_policy()
    if sys.version_info < (3, 12) and isinstance(policy, asyncio.DefaultEventLoopPolicy):
        watcher = asyncio.PidfdChildWatcher()
        watcher.attach_loop(asyncio.get_running_loop())
        policy.set_child_watcher(watcher)


def environment() -> dict[str, str]:
    """What a task's processes see: the agent's environment without its own settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE_PREFIX)}


async def spawn(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdout: int,
    stderr: int,
    pass_fds: Sequence[int] = (),
    niceness: int = 0,
) -> asyncio.subprocess.Process:
    """Start a program that dies with this process. Raises OSError when it cannot be started."""
    setpriv = _setpriv()
    with _spawned.starting():
        process = await asyncio.create_subprocess_exec(
            *(argv if setpriv is None else (setpriv, "--pdeathsig", "KILL", "--", *argv)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env=env,
            pass_fds=pass_fds,
            start_new_session=True,
            preexec_fn=_death_signal() if setpriv is None else None,
        )
        _spawned.pids.add(process.pid)
    _prefer_for_oom_killer(process.pid)
    if niceness:
        with suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, process.pid, niceness)
    return process


class _Spawned:
    """The children that were started here: somebody waits for each of them."""

    def __init__(self) -> None:
        self.pids = set[int]()
        self.under_way = 0

    @contextmanager
    def starting(self) -> Iterator[None]:
        """While a program is being started its pid is not known yet."""
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1


_spawned: Final = _Spawned()


def bury_orphans() -> None:
    """Wait for the dead that came to this process as orphans, so that none stays in the process table.

    Those that were started here are left to whoever waits for them.
    """
    if _spawned.under_way:
        return
    entries = table()
    _spawned.pids &= entries.keys()
    for pid, entry in entries.items():
        if entry.zombie and entry.parent == os.getpid() and pid not in _spawned.pids:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _prefer_for_oom_killer(pid: int) -> None:
    with suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "wb", buffering=0) as score:
        score.write(_OOM_SCORE)


@cache
def _setpriv() -> str | None:
    return shutil.which("setpriv")


@cache
def _death_signal() -> Callable[[], None]:
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def signal_name(number: int) -> str:
    """SIGSEGV and the like."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def table(root: int = 0) -> dict[int, Entry]:
    """The process table; with `root`, at least that process and all that are younger."""
    if root:
        with open("/proc/loadavg", "rb", buffering=0) as loadavg:
            root = root if int(loadavg.read(256).split()[-1]) >= root else 0
    entries = {}
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) >= root and (entry := _entry(name)) is not None:
            entries[int(name)] = entry
    return entries


def _entry(pid: str) -> Entry | None:
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
            fields = stat.read(1024).rpartition(b")")[2].split()
    except OSError:
        return None
    return Entry(int(fields[1]), int(fields[3]), fields[0] in (b"Z", b"X"))


def family(entries: Mapping[int, Entry], roots: Collection[int], marks: Collection[str] = ()) -> set[int]:
    """The pids of a task's processes that are alive, roots included; `marks`: find its orphans too."""
    found = {pid for pid, entry in entries.items() if pid in roots or entry.session in roots}
    if marks:
        found |= _orphans(entries, marks)
    children: dict[int, list[int]] = {}
    for pid, entry in entries.items():
        children.setdefault(entry.parent, []).append(pid)
    fresh = list(found)
    while fresh:
        below = [child for child in children.get(fresh.pop(), ()) if child not in found]
        found.update(below)
        fresh += below
    found.discard(os.getpid())
    return {pid for pid in found if pid in entries and not entries[pid].zombie}


def _orphans(entries: Mapping[int, Entry], marks: Collection[str]) -> set[int]:
    adopters = (1, os.getpid())
    wanted = {f"{MARK}={mark}".encode() for mark in marks}
    return {pid for pid, entry in entries.items() if entry.parent in adopters and _carries(pid, wanted)}


def _carries(pid: int, wanted: set[bytes]) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as environ:
            return not wanted.isdisjoint(environ.read(1 << 20).split(b"\0"))
    except OSError:
        return False


def left_behind(root: int, mark: str) -> set[int]:
    """What is alive of a program's processes after `root` ended."""
    return family(table(root), {root}, (mark,))


def send_signal(pids: Iterable[int], number: signal.Signals) -> None:
    """To those that are still there, the oldest first: a parent hears of it before its child's end."""
    for pid in sorted(pids):
        with suppress(OSError):
            os.kill(pid, number)


async def kill(
    find: Callable[[], set[int]], awaited: Collection[int] = (), bound: float = DEATH_BOUND
) -> None:
    """Kill all processes that `find` finds, and those that they start meanwhile; returns when they are gone.

    `awaited`: those whose exit somebody else waits for. The others, where they are orphans that came to this
    process, are waited for here. What is in the middle of a system call that cannot be interrupted may
    outlive `bound`, in seconds.
    """
    held: dict[int, int] = {}
    try:
        for _ in range(_FREEZE_ROUNDS):
            if not (fresh := find() - held.keys()):
                break
            for pid in fresh:
                with suppress(OSError):
                    held[pid] = os.pidfd_open(pid)
                    signal.pidfd_send_signal(held[pid], signal.SIGSTOP)
        for descriptor in held.values():
            with suppress(OSError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        await _all_ended(held.values(), bound)
    finally:
        for descriptor in held.values():
            os.close(descriptor)
        await _bury(held.keys() - set(awaited))
        bury_orphans()
        asyncio.get_running_loop().call_later(_BURIAL_BOUND, bury_orphans)


async def _all_ended(descriptors: Collection[int], bound: float) -> None:
    """A pidfd becomes readable when its process ends."""
    loop = asyncio.get_running_loop()
    pending = set(descriptors)
    over = loop.create_future()

    def ended(descriptor: int) -> None:
        loop.remove_reader(descriptor)
        pending.discard(descriptor)
        if not pending and not over.done():
            over.set_result(None)

    if not pending:
        return
    for descriptor in descriptors:
        loop.add_reader(descriptor, ended, descriptor)
    try:
        async with asyncio.timeout(bound):
            await over
    except TimeoutError:
        pass
    finally:
        for descriptor in pending:
            loop.remove_reader(descriptor)


async def _bury(pids: Iterable[int]) -> None:
    """Wait for those that came to us: a dead process stays in the table until somebody does.

    One whose parent was killed with it comes to us a moment later than it ends.
    """
    left = set(pids)
    until = asyncio.get_running_loop().time() + _BURIAL_BOUND
    while left := {pid for pid in left if not _buried(pid)}:
        if asyncio.get_running_loop().time() >= until:
            return
        await asyncio.sleep(_BURIAL_PAUSE)


def _buried(pid: int) -> bool:
    """Whether it is out of the table, after we did our part."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return not os.path.exists(f"/proc/{pid}")


def resident(pids: Iterable[int]) -> int:
    """Bytes of resident memory of these processes together; shared pages count once for each of them."""
    total = 0
    for pid in pids:
        with suppress(OSError), open(f"/proc/{pid}/statm", "rb", buffering=0) as statm:
            total += int(statm.read(256).split()[1])
    return total * os.sysconf("SC_PAGE_SIZE")
