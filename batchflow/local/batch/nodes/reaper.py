"""The parent of one command on a local node: ends with it, and lets nothing that it started live on.

Run as a small process of its own between the Batch server and the command, so that the promise holds without
the server's help:

- It is a child subreaper: all processes of the command stay below it, new sessions and daemons included.
- When the command ends, what is left below is killed, then the reaper ends with the command's status
  (128 + signal for a signal, as a shell tells it).
- SIGTERM to the reaper passes it on to the command alone, so that a supervisor may drain its own children,
  and after the grace period kills the tree.
- SIGINT to the reaper kills the tree at once. The kernel sends it when the server dies, however it dies.
- Should the reaper itself be killed, the kernel kills the command.

A command that cannot be started is told through the status descriptor: the error number in ASCII; nothing but
end-of-file means that it runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

from batchflow.support import linux

TYPE_CHECKING = False  # `typing` alone is a seventh of what a reaper holds
if TYPE_CHECKING:
    from typing import NoReturn

STOP = signal.SIGTERM
KILL = signal.SIGINT
NOT_STARTED = 127

_IDLE = 3600.0
_PASS_INTERVAL = 0.005
_WATCHED = frozenset({signal.SIGCHLD, STOP, KILL})


def main(arguments: list[str]) -> int:
    """Run `PARENT STATUS_FD GRACE HOST_NAME USER COMMAND...`; the command's exit status.

    `USER`: the command's user and group by number, `UID:GID`; empty: those of the reaper.
    """
    parent, status_fd, grace, host_name, user, *command = arguments
    linux.heed_children()
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    linux.enter_uts_namespace(host_name)
    linux.become_subreaper()
    linux.set_parent_death_signal(KILL)
    if os.getppid() != int(parent):
        return NOT_STARTED
    child = _start(command, int(status_fd), user)
    try:
        return _keep(child, int(parent), float(grace))
    finally:
        linux.kill_descendants(within=float("inf"))


def _start(command: list[str], status_fd: int, user: str) -> int:
    os.set_inheritable(status_fd, False)
    reaper = os.getpid()
    child = os.fork()
    if child == 0:
        _become(command, reaper, status_fd, user)
    os.close(status_fd)
    return child


def _become(command: list[str], reaper: int, status_fd: int, user: str) -> NoReturn:
    try:
        os.setsid()
        _empty_outputs()
        if user:
            uid, gid = map(int, user.split(":"))
            os.get_exec_path()  # imports what the user may not be able to read, and `execvp` needs
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)  # before the next line, which it would undo
        linux.set_parent_death_signal(signal.SIGKILL)
        if os.getppid() != reaper:
            os._exit(NOT_STARTED)
        for signum in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvp(command[0], command)
    except OSError as error:
        os.write(status_fd, str(error.errno).encode())
    finally:
        os._exit(NOT_STARTED)


def _empty_outputs() -> None:
    """Empty the output files, which until now hold the output of an earlier try."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # no file, but a pipe: it holds nothing
            os.ftruncate(descriptor, 0)


def _keep(child: int, parent: int, grace: float) -> int:
    """Wait for the command, heeding signals; its exit status."""
    deadline: float | None = None
    while (status := _reap(child)) is None:
        timeout = _IDLE if deadline is None else max(_PASS_INTERVAL, deadline - time.monotonic())
        received = signal.sigtimedwait(_WATCHED, timeout)
        orphaned = os.getppid() != parent
        if orphaned or (received is None and deadline is not None):
            linux.signal_all(linux.descendants(os.getpid()), signal.SIGKILL)
        elif received is not None and received.si_signo == KILL:
            deadline = time.monotonic()
        elif received is not None and received.si_signo == STOP:
            linux.signal_all([child], signal.SIGTERM)
            deadline = min(deadline or float("inf"), time.monotonic() + grace)
    return status


def _reap(child: int) -> int | None:
    """Reap what has ended; return the command's exit status, None while it runs."""
    status = linux.reap().get(child)
    return None if status is None else _exit_status(status)


def _exit_status(wait_status: int) -> int:
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
