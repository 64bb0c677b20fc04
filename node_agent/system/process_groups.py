"""Starts, finds and ends the processes of tasks, so that none escapes.

Started: in a session of their own, with SIGKILL on the agent's death (PR_SET_PDEATHSIG), and favoured by the
kernel's out-of-memory killer over the agent. The death signal is set by util-linux's `setpriv`, which costs
the agent nothing; a `preexec_fn`, the way out where there is no `setpriv`, makes the agent fork with all its
pages (2 ms at 60 MB, 5 ms at 300 MB, with the event loop standing still).

Found: a task's processes are its root and all descendants of it, all members of the root's session, and all
orphans that carry the slot's mark in their environment (the agent is a child subreaper, so orphans become its
children) with their descendants. A process that left session, parent and environment behind is no longer
found here; it ends when its subreaper does.

Counted: threads and zombies too, because they also take process ids of the node.

Ended: SIGSTOP for all until no younger one appears, so that nothing forks away meanwhile, then SIGKILL for
all; and again, until none is found: the kernel brings a fork that was under way to its end before it stops.
A process group is stopped as one, which no fork in it escapes. Signals go through pidfds, and so never to a
process that merely got the same number; past `_MOST_HELD` of them, which a fork bomb has, by number.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import sys
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Final

from batchflow.protocol import variables
from batchflow.support import linux
from batchflow.support.linux import ProcessStat

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

MARK: Final = variables.MARK
"""The environment variable by which the orphans of a slot are known."""
MARK_LENGTH: Final = 48
"""Bytes of its value: all are of one length, because a fork writes its own over that of its template."""
_PRIVATE_PREFIX: Final = "BATCHFLOW_"
_OWN_FOLDERS: Final = ("HOME", "AZ_BATCH_TASK_DIR", "AZ_BATCH_TASK_WORKING_DIR")
"""The environment variables that lead to the agent's own files."""
_OOM_SCORE: Final = b"500"
_KILL_ROUNDS: Final = 100
_MOST_HELD: Final = 256
"""Maximum number of processes that are killed by pidfd at once, because descriptors are limited."""
_REAP_BOUND: Final = 1.0
"""Seconds to wait until an orphan that ended becomes our child."""
_REAP_PAUSE: Final = 0.002
_UNKNOWN: Final = 255
DEATH_BOUND: Final = 5.0
"""Maximum number of seconds to wait until a killed process is gone."""


@cache
def adopt_orphans() -> None:
    """Make this process a child subreaper: orphans among its descendants become its children. Once is enough.

    Called in a running event loop, which then waits for processes without threads.
    """
    linux.become_subreaper()
    _wait_by_pidfd()


def _wait_by_pidfd() -> None:
    """Have asyncio wait for processes by pidfd. Before 3.12 its default is a thread for each process."""
    policy = asyncio.get_event_loop_policy()
    if sys.version_info < (3, 12) and isinstance(policy, asyncio.DefaultEventLoopPolicy):
        watcher = asyncio.PidfdChildWatcher()
        watcher.attach_loop(asyncio.get_running_loop())
        policy.set_child_watcher(watcher)


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a task's processes: the agent's, without the agent's own settings.

    `home`: what tasks get in place of the folders of the agent's own Batch task.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE_PREFIX)}
    return kept | dict.fromkeys(_OWN_FOLDERS, str(home))


async def spawn(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdout: int,
    stderr: int,
    pass_fds: Sequence[int] = (),
    niceness: int = 0,
    most_processes: int | None = None,
) -> asyncio.subprocess.Process:
    """Start a program that dies with this process. Raises OSError when it cannot be started.

    `most_processes`: the number of processes and threads of this user at which the kernel refuses more.
    """
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
            preexec_fn=linux.set_parent_death_signal if setpriv is None else None,
        )
        _spawned.pids.add(process.pid)
    _prefer_for_oom_killer(process.pid)
    with suppress(ProcessLookupError):
        if niceness:
            os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + niceness)
        if most_processes is not None:
            _bound(process.pid, most_processes)
    return process


def _bound(pid: int, most: int) -> None:
    with suppress(PermissionError):  # it has become another user already
        _, hard = resource.prlimit(pid, resource.RLIMIT_NPROC)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.prlimit(pid, resource.RLIMIT_NPROC, (most, most))


class Adopted:
    """A process that others started and that has become a child of this one. Its end is awaited here."""

    def __init__(self, pid: int) -> None:
        """Begin to wait for its end, in a running event loop. Raises OSError when there is no such one."""
        self.pid = pid
        self.returncode: int | None = None
        """As in `asyncio.subprocess.Process`; 255 when another part has reaped it."""
        self._descriptor = os.pidfd_open(pid)
        self._is_frozen = False
        _spawned.pids.add(pid)
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        loop.add_reader(self._descriptor, self._reap, loop)

    async def wait(self) -> int:
        """Return the exit code, once it has ended. Safe to cancel."""
        if self.returncode is None:
            await asyncio.shield(self._ended)
        assert self.returncode is not None
        return self.returncode

    @property
    def alive(self) -> bool:
        """Whether it has not ended, as the kernel knows it: its end may not have been noticed here."""
        if self.returncode is not None:
            return False
        try:
            return os.waitid(os.P_PIDFD, self._descriptor, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.returncode is None:
            _signal(self.pid, self._descriptor, number)

    def freeze(self) -> None:
        """Make it stand still until `thaw`. It must wait for something: only its other threads are stopped,
        and a process without any gets no signal, because two of them take as long as a short task."""
        stat = linux.read_stat(self.pid)
        self._is_frozen = stat is None or stat.threads > 1
        if self._is_frozen:
            self.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        if self._is_frozen:
            self._is_frozen = False
            self.send_signal(signal.SIGCONT)

    def _reap(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            self.returncode = _UNKNOWN
        else:
            self.returncode = os.waitstatus_to_exitcode(status)
        self._ended.set_result(None)


class _Spawned:
    """The children that were started here, or adopted. Each of them has a waiter."""

    def __init__(self) -> None:
        self.pids = set[int]()
        self.under_way = 0

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Mark a program as being started. Its pid is not known yet."""
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1


_spawned: Final = _Spawned()


def reap_orphans() -> None:
    """Reap the orphans that became children of this process and ended, so that none stays a zombie.

    Processes that were started here are left to their waiters.
    """
    reap_orphans_of(table())


def reap_orphans_of(entries: dict[int, ProcessStat]) -> None:
    """Reap the orphans of a process table, and remove them from the table."""
    if _spawned.under_way:
        return
    _spawned.pids &= entries.keys()
    orphans = [pid for pid, entry in entries.items() if entry.is_dead and entry.parent == os.getpid()]
    for pid in orphans:
        if pid not in _spawned.pids:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            del entries[pid]


def _prefer_for_oom_killer(pid: int) -> None:
    with suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "wb", buffering=0) as score:
        score.write(_OOM_SCORE)


@cache
def _setpriv() -> str | None:
    return shutil.which("setpriv")


def signal_name(number: int) -> str:
    """Return the name of a signal, such as SIGSEGV."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def table(root: int = 0) -> dict[int, ProcessStat]:
    """Read the process table; with `root`, at least that process and all that are younger."""
    if root:
        with open("/proc/loadavg", "rb", buffering=0) as loadavg:
            root = root if int(loadavg.read(256).split()[-1]) >= root else 0
    return linux.process_table(root)


def on_node() -> tuple[int, int]:
    """Count the runnable processes and threads of the node, and all of them, for all users.

    It reads one small file instead of the whole table.
    """
    with open("/proc/loadavg", "rb", buffering=0) as loadavg:
        running, _, everything = loadavg.read(256).split()[3].partition(b"/")
    return int(running), int(everything)


def of_user() -> int:
    """Count the processes and threads of this user, which RLIMIT_NPROC bounds."""
    count = 0
    for pid, entry in table().items():
        with suppress(OSError):
            count += entry.threads * (os.stat(f"/proc/{pid}").st_uid == os.getuid())
    return count


def family(
    entries: Mapping[int, ProcessStat], roots: Collection[int], marks: Collection[str] = ()
) -> set[int]:
    """Find the living processes of a task, roots included; `marks`: find its orphans too."""
    return {pid for pid in _members(entries, roots, marks) if not entries[pid].is_dead}


def population(
    entries: Mapping[int, ProcessStat], roots: Collection[int], marks: Collection[str] = ()
) -> int:
    """Count the processes and threads of a task, zombies included."""
    return sum(entries[pid].threads for pid in _members(entries, roots, marks))


def _members(entries: Mapping[int, ProcessStat], roots: Collection[int], marks: Collection[str]) -> set[int]:
    found = {pid for pid, entry in entries.items() if pid in roots or entry.session in roots}
    if marks:
        found |= _orphans(entries, marks)
    children: dict[int, list[int]] = {}
    for pid, entry in entries.items():
        children.setdefault(entry.parent, []).append(pid)
    fresh = [*found, *roots]
    while fresh:
        below = [child for child in children.get(fresh.pop(), ()) if child not in found]
        found.update(below)
        fresh += below
    found.discard(os.getpid())
    return found


def _orphans(entries: Mapping[int, ProcessStat], marks: Collection[str]) -> set[int]:
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
    """Find the living processes of a program after its `root` ended."""
    return family(table(root), {root}, (mark,))


async def kill(
    find: Callable[[], set[int]], awaited: Collection[int] = (), bound: float = DEATH_BOUND
) -> None:
    """Kill all processes that `find` finds, and those that they start meanwhile; returns when they are gone.

    `support.linux.kill_descendants` ends everything below one process and blocks. This one ends a task among
    others below the same agent, orphans included, while the agent's event loop goes on.

    `awaited`: the processes that have another waiter. Orphans among the others are reaped here. A process in
    a system call that cannot be interrupted may outlive `bound`, in seconds.
    """
    held: dict[int, int | None] = {}
    try:
        for _ in range(_KILL_ROUNDS):
            if not (fresh := find() - held.keys()):
                break
            while fresh:
                _freeze(fresh, held)
                fresh = family(table(max(held)), held.keys()) - held.keys()
            for pid, descriptor in held.items():
                _signal(pid, descriptor, signal.SIGKILL)
            await _all_ended([descriptor for descriptor in held.values() if descriptor is not None], bound)
    finally:
        for descriptor in held.values():
            if descriptor is not None:
                os.close(descriptor)
        await _reap(held.keys() - set(awaited))
        reap_orphans()
        asyncio.get_running_loop().call_later(_REAP_BOUND, _reap_late)


def _reap_late() -> None:
    """Reap the last orphans as soon as no program is being started."""
    if _spawned.under_way:
        asyncio.get_running_loop().call_later(_REAP_PAUSE, _reap_late)
    reap_orphans()


def _freeze(fresh: Collection[int], held: dict[int, int | None]) -> None:
    signal_groups(fresh, signal.SIGSTOP)
    for pid in fresh:
        held[pid] = _hold(pid) if len(held) < _MOST_HELD else None
        _signal(pid, held[pid], signal.SIGSTOP)


def signal_groups(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to the groups that these processes lead."""
    for pid in pids:
        with suppress(OSError):
            if os.getpgid(pid) == pid:
                os.killpg(pid, number)


def _hold(pid: int) -> int | None:
    """Open a pidfd; None when the process has ended, or no pidfd is available."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _signal(pid: int, descriptor: int | None, number: signal.Signals) -> None:
    with suppress(OSError):
        if descriptor is None:
            os.kill(pid, number)
        else:
            signal.pidfd_send_signal(descriptor, number)


async def _all_ended(descriptors: Collection[int], bound: float) -> None:
    """Wait until all these processes have ended. A pidfd becomes readable when its process ends."""
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


async def _reap(pids: Iterable[int]) -> None:
    """Reap the orphans among these processes, so that none stays a zombie.

    A process whose parent was killed with it becomes our child a moment after its end.
    """
    left = set(pids)
    until = asyncio.get_running_loop().time() + _REAP_BOUND
    while left := {pid for pid in left if not _reaped(pid)}:
        if asyncio.get_running_loop().time() >= until:
            return
        await asyncio.sleep(_REAP_PAUSE)


def _reaped(pid: int) -> bool:
    """Reap a process if it is ours; tell whether it is out of the process table, or another one's to reap."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        stat = linux.read_stat(pid)
        return stat is None or (stat.is_dead and _has_waiting_parent(stat))


def _has_waiting_parent(stat: ProcessStat) -> bool:
    """Return whether the parent of a dead process lives and is another one, which then reaps it."""
    parent = None if stat.parent == os.getpid() else linux.read_stat(stat.parent)
    return parent is not None and not parent.is_dead


def private(pid: int) -> int:
    """Read the bytes of a process's memory that are in no file. Pages of its template count, too."""
    try:
        return linux.private_memory(pid)
    except OSError:
        return 0


def resident(pids: Iterable[int]) -> int:
    """Sum the resident memory of these processes in bytes. Shared pages count once for each process."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            total += linux.resident_memory(pid)
    return total
