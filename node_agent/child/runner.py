"""A program run to its end while its caller waits: what `java_runner` does in the child. Blocking.

The child starts the program by itself: it is small, and nothing has to wait for the agent's event loop. The
program is of the child's session; a timeout, a cancellation and the child's own end find it there (see
`node_agent.system.process_groups`).
"""

from __future__ import annotations

import errno
import os
import select
import signal
from contextlib import suppress

from node_agent.child import java
from node_agent.system.tail import Tail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

NICENESS: Final = 10
"""Programs step back a little: one that takes every core must not delay leases, results and other starts."""
OUTPUT_LIMIT: Final = 16 * 1024**2
"""Bytes of stdout, and of stderr, that are kept of a program whose lines are wanted."""
_PIPE_SIZE: Final = 64 * 1024
"""All that a pipe holds: one read takes in what was written before it."""
_LONGEST_ARGUMENT_PAGES: Final = 32
"""Pages of memory that one argument may fill: MAX_ARG_STRLEN of Linux."""
_IGNORED_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)


def run(argv: Sequence[str]) -> dict[str, Any]:
    """Run a program in the current directory: `reply`, or an `error` when it did not start.

    May be called from several threads at once. Whatever is raised in here, by a signal's handler, ends it.
    """
    found = java.program(argv[0])
    if found is None:
        return {"error": java.MISSING}
    out, out_writer = os.pipe2(os.O_CLOEXEC)
    err, err_writer = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            pid = _start((found, *argv[1:]), out_writer, err_writer)
        except OSError as error:
            return {"error": start_failure(argv, error)}
        finally:
            os.close(out_writer)
            os.close(err_writer)
        return _follow(pid, out, err)
    finally:
        os.close(out)
        os.close(err)


def reply(exit_code: int, stdout: Tail, stderr: Tail) -> dict[str, Any]:
    """Return how a program ended and what it printed: `exit_code` (negative: the number of the signal),
    `stdout` and `stderr`; or an `error`, when that is too much to hand on."""
    for name, tail in (("stdout", stdout), ("stderr", stderr)):
        if not tail.complete:
            return {
                "error": f"the program printed {tail.size} bytes to {name}, the limit is {tail.limit}: "
                "let it write a file"
            }
    return {"exit_code": exit_code, "stdout": stdout.text(), "stderr": stderr.text()}


def start_failure(argv: Sequence[str], error: OSError) -> str:
    """Return why a program did not start, and what to do where its arguments are the reason."""
    if error.errno != errno.E2BIG:
        return f"{argv[0]} does not start: {error.strerror or error}"
    sizes = [len(os.fsencode(word)) for word in argv]
    most = _LONGEST_ARGUMENT_PAGES * os.sysconf("SC_PAGESIZE") - 1
    if max(sizes) > most:
        long = argv[sizes.index(max(sizes))]
        what = f"the argument {long[:20]!r}... has {max(sizes)} bytes, Linux takes {most}"
    else:
        what = f"its {len(argv) - 1} arguments have {sum(sizes)} bytes together, more than Linux takes"
    return (
        f"{os.path.basename(argv[0])} does not start: {what}. Pass them in a file, or to a Python task, "
        "whose arguments may have any size"
    )


def _start(argv: tuple[str, ...], stdout: int, stderr: int) -> int:
    pid = os.posix_spawn(
        argv[0],
        argv,
        os.environ,
        file_actions=(
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, stdout, 1),
            (os.POSIX_SPAWN_DUP2, stderr, 2),
        ),
        setsigmask=(),
        setsigdef=_IGNORED_BY_PYTHON,
    )
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
    return pid


def _follow(pid: int, out: int, err: int) -> dict[str, Any]:
    """Take in what it prints until it has ended, whatever else may hold its pipes open."""
    stdout, stderr = Tail(OUTPUT_LIMIT), Tail(OUTPUT_LIMIT)
    end = os.pidfd_open(pid)
    status: int | None = None
    try:
        _collect(end, {out: stdout, err: stderr})
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(end)
        if status is None:
            _reap(pid)
    return reply(os.waitstatus_to_exitcode(status), stdout, stderr)


def _reap(pid: int) -> None:
    with suppress(OSError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _collect(end: int, tails: dict[int, Tail]) -> None:
    poll = select.poll()
    poll.register(end, select.POLLIN)
    for pipe in tails:
        os.set_blocking(pipe, False)
        poll.register(pipe, select.POLLIN)
    ready: set[int] = set()
    while end not in ready:
        ready = {descriptor for descriptor, _ in poll.poll()}
        for pipe in ready & tails.keys():
            if not _read(pipe, tails[pipe]):
                poll.unregister(pipe)
    for pipe, tail in tails.items():
        _read(pipe, tail)


def _read(pipe: int, tail: Tail) -> bool:
    """Take in what is there; False at the end of the stream."""
    try:
        data = os.read(pipe, _PIPE_SIZE)
    except BlockingIOError:
        return True
    tail.add(data)
    return bool(data)
