"""The supervisor: the small process that Batch starts on a node, and the parent of the agent.

Rules:

- It is a child subreaper: the processes of a dead agent, in any session, become its children and are killed.
- A crashed agent is started again in place, at once the first time, then after ever longer waits; one that
  lived for `LONG_LIFE` seconds counts as sound. What ran when it died is noted (`crash_record`).
- The first SIGTERM or SIGINT is handed on as SIGTERM: the agent drains. The second one, or a drain that takes
  longer than it may, ends everything at once.
- Should the supervisor itself be killed, the kernel tells the agent by SIGHUP, which ends itself and all that
  is below it.
- An agent whose node cannot run tasks ends by itself (`UNFIT`), and another one begins, after the same waits.
  When the agent's own files are gone no other can, and the supervisor ends too.
- Exit code 0 means that the agent's work is over: it was idle, stopped, or drained. A configuration that
  cannot be used (`EX_CONFIG`) ends the supervisor too, and so do `MOST_CRASHES` crashes in a row; a stop that
  was not clean is `STOPPED_HARD`.

It forks the agent, which then starts with a warm interpreter. It imports as little as possible, because one
supervisor runs on every node: no event loop and no SDK, no `logging` and no `typing`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

from batchflow.support import linux
from node_agent.system.plain_log import say

TYPE_CHECKING = False  # see `node_agent.system.plain_log`
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, NoReturn

_LOGGER: Final = "node_agent.supervision.supervisor"
EX_CONFIG: Final = 78
UNFIT: Final = 75
"""Exit code of an agent whose node could not run tasks. It has handed all back, and is to begin anew."""
SITE_GONE: Final = 70
"""Exit code when the agent's own files are gone: Batch starts the task again, which unpacks them again."""
STOPPED_HARD: Final = 128 + signal.SIGTERM
LONG_LIFE: Final = 60.0
MOST_CRASHES: Final = 100
FIRST_WAIT: Final = 0.25
LONGEST_WAIT: Final = 30.0

_STOPS: Final = frozenset({signal.SIGTERM, signal.SIGINT})
_AWAITED: Final = _STOPS | {signal.SIGCHLD}


class Supervisor:
    """Keeps one agent alive."""

    def __init__(
        self, agent: Callable[[], int], directory: str | os.PathLike[str], stop_within: float
    ) -> None:
        """`agent` is called in a process of its own and returns its exit code; `stop_within`: seconds that
        it may take to drain; `directory` keeps the records."""
        self._agent = agent
        self._directory = directory
        self._stop_within = stop_within
        self._crashes = 0
        self._stop_by: float | None = None

    def run(self) -> int:
        """Run agents until one ends for good; return the exit code."""
        linux.heed_children()
        signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
        linux.become_subreaper()
        with suppress(OSError):
            os.unlink(os.path.join(self._directory, "running"))
        while True:
            started = time.monotonic()
            pid = self._start()
            status = self._watch(pid)
            self._sweep()
            code = self._verdict(status, time.monotonic() - started)
            if code is not None:
                say("INFO", _LOGGER, "supervisor_exit", code=code)
                return code
            if not self._wait_before_restart():
                return 0

    def _start(self) -> int:
        supervisor = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become_agent(self._agent, supervisor)
        say("INFO", _LOGGER, "agent_started", agent_pid=pid)
        return pid

    def _watch(self, pid: int) -> int:
        """Pass the first stop on, enforce the second; return the wait status of the agent at its end."""
        while True:
            if (status := linux.reap().get(pid)) is not None:
                return status
            if self._out_of_time():
                say("WARNING", _LOGGER, "agent_killed", agent_pid=pid)
                os.kill(pid, signal.SIGKILL)
                return os.waitpid(pid, 0)[1]
            if self._await_stop(self._patience()):
                self._stop(pid)

    def _await_stop(self, patience: float) -> bool:
        """Wait for a signal; return whether it asks the supervisor to stop."""
        told = signal.sigtimedwait(_AWAITED, patience)
        return told is not None and told.si_signo in _STOPS

    def _stop(self, pid: int) -> None:
        if self._stop_by is None:
            say("INFO", _LOGGER, "stopping", agent_pid=pid)
            self._stop_by = time.monotonic() + self._stop_within
            os.kill(pid, signal.SIGTERM)
        else:
            self._stop_by = time.monotonic()

    def _out_of_time(self) -> bool:
        return self._stop_by is not None and time.monotonic() >= self._stop_by

    def _patience(self) -> float:
        """Return the seconds until the next thing is due."""
        return 3600.0 if self._stop_by is None else max(0.0, self._stop_by - time.monotonic())

    def _sweep(self) -> None:
        """Kill all processes that the agent has left."""
        if left := linux.kill_descendants():
            say("ERROR", _LOGGER, "processes_left", pids=sorted(left))

    def _verdict(self, status: int, lived: float) -> int | None:
        """Return the exit code to end with, or None to start another agent."""
        code = os.waitstatus_to_exitcode(status)
        if code in (0, EX_CONFIG):
            return code
        if code == UNFIT:
            say("ERROR", _LOGGER, "agent_unfit", lived=round(lived, 3))
        else:
            say("ERROR", _LOGGER, "agent_died", exit_code=code, lived=round(lived, 3))
        if self._stop_by is not None:
            return 0 if code == UNFIT else STOPPED_HARD
        if not os.path.exists(__file__):
            say("ERROR", _LOGGER, "agent_files_gone", path=__file__)
            return SITE_GONE
        if code != UNFIT:
            self._record_crashes()
        self._crashes = 1 if lived >= LONG_LIFE else self._crashes + 1
        if self._crashes >= MOST_CRASHES:
            return code if code > 0 else 128 - code
        return None

    def _record_crashes(self) -> None:
        from node_agent.supervision.crash_record import record_crashes

        try:
            running = record_crashes(self._directory, time.time())
        except OSError as error:
            say("ERROR", _LOGGER, "deaths_not_recorded", error=str(error))
            return
        if running:
            say("WARNING", _LOGGER, "tasks_died_with_agent", uids=running[:20], tasks=len(running))

    def _wait_before_restart(self) -> bool:
        """Wait out the backoff; return False when a signal asks the supervisor to stop meanwhile."""
        until = time.monotonic() + min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(self._crashes - 1, 16))
        while (left := until - time.monotonic()) > 0:
            if self._await_stop(left):
                return False
        return True


def _become_agent(agent: Callable[[], int], supervisor: int) -> NoReturn:
    """Run the agent in the forked process until it exits."""
    code = 1
    try:
        for number in _STOPS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, _die_with_all)
        linux.set_parent_death_signal(signal.SIGHUP)
        linux.become_subreaper()
        if os.getppid() != supervisor:
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)
        code = agent()
    except BaseException:
        import logging

        logging.getLogger(_LOGGER).exception("agent_crashed")
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # a full disk must not let the fork return into its parent's code
                stream.flush()
        os._exit(code)


def _die_with_all(*_: object) -> NoReturn:
    """End this agent and its processes, because its supervisor is dead and cannot clean up."""
    linux.kill_descendants()
    os._exit(1)
