"""What a process has but one of, compared after each task and put back.

Rules:

- What the import of the task's files changed stays, as their modules do. What the task itself changed is put
  back: timers, signal handlers and the signal mask, descriptors 0 to 2, limits, umask, environment, recursion
  limit, asyncio's policy, the default timeout of sockets, and the folder of temporary files.
- What cannot be put back makes the child retire, such as a hard limit that only root may raise.
- The helpers of multiprocessing end with their task: the resource tracker and the fork server. The tracker
  removes the shared memory that the task left behind.

A whole comparison takes some 15 us, as long as a short task. So signals and limits are compared only after a
task that called what changes them, or that took `_LONG` seconds, in which other code may have changed them.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import resource
import signal
import sys
from functools import wraps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_signal: Final[Any] = sys.modules["_signal"]
"""Without the enumerations of `signal`, which take more than half of the time."""
_TIMERS: Final = (_signal.ITIMER_REAL, _signal.ITIMER_VIRTUAL, _signal.ITIMER_PROF)
_SIGNALS: Final = tuple(sorted(set(map(int, signal.valid_signals())) - {signal.SIGKILL, signal.SIGSTOP}))
_LIMITS: Final = tuple(
    sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_")})
)
_DATA: Final = _LIMITS.index(resource.RLIMIT_DATA)
"""The limit that a task with a memory limit has, its imports included."""
_CHANGING: Final = (
    *((_signal, name) for name in ("signal", "alarm", "setitimer", "pthread_sigmask")),
    *((signal, name) for name in ("alarm", "setitimer")),
    *((resource, name) for name in ("setrlimit", "prlimit")),
)
"""The functions that change signals and limits. `signal` has some under its own name as well."""
_LONG: Final = 0.001
_GET_SIGNAL, _SET_SIGNAL = 11, 10
"""F_GETSIG and F_SETSIG: a number that belongs to an open file, and means nothing without O_ASYNC."""
_MARKER: Final = 35
"""The number by which the child's own standard files are known. It costs a fifth of `os.fstat`."""
_HELPERS: Final = (
    ("multiprocessing.forkserver", "_forkserver"),
    ("multiprocessing.resource_tracker", "_resource_tracker"),
)
_HELPER_BOUND: Final = 1.0
"""Seconds that the helpers may take to end. A process that outlives its task may hold them up."""


class _Baseline:
    """The present state, to return to."""

    __slots__ = ("handlers", "limits", "mask", "recursion", "temporary", "timeout", "variables")

    def __init__(self) -> None:
        self.handlers = list(map(_signal.getsignal, _SIGNALS))
        self.mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
        self.limits = list(map(resource.getrlimit, _LIMITS))
        self.variables = dict(_variables())
        self.recursion = sys.getrecursionlimit()
        self.timeout = _socket.getdefaulttimeout()
        self.temporary = getattr(sys.modules.get("tempfile"), "tempdir", None)


class ProcessState:
    """The state to which a process returns after each task."""

    def __init__(self) -> None:
        """Remember the state of a process in which no task has run, and note from now on what changes it."""
        self._environment = os.environ
        self._standard = [os.dup(descriptor) for descriptor in range(3)]
        for descriptor in range(3):
            fcntl.fcntl(descriptor, _SET_SIGNAL, _MARKER)
            os.set_inheritable(self._standard[descriptor], False)
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        self._first = self._baseline = _Baseline()
        self._noted = False
        for module, name in _CHANGING:
            setattr(module, name, self._noting(getattr(module, name)))

    def set_variables(self, variables: dict[str, str]) -> None:
        """Add to the environment of all tasks, before the first of them runs."""
        os.environ.update(variables)
        self._first.variables = dict(_variables())

    def accept(self) -> None:
        """Take the present state, which the import of a task's files has made, as the one to return to."""
        data = self._baseline.limits[_DATA]
        self._baseline = _Baseline()
        self._baseline.limits[_DATA] = data
        self._noted = False

    def begin_anew(self) -> bool:
        """Return to the state before any import, for other files; return whether that succeeded."""
        self._baseline = self._first
        return self.restore(_LONG)

    def restore(self, duration: float) -> bool:
        """Put back what differs after a task of so many seconds; return whether that succeeded."""
        try:
            if self._noted or duration >= _LONG:
                self._restore_signals()
                self._restore_limits()
                self._noted = False
            self._restore_rest()
        except (OSError, ValueError, RecursionError):
            return False
        return True

    def _noting(self, function: Any) -> Any:
        @wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            self._noted = True
            return function(*args, **options)

        return call

    def _restore_signals(self) -> None:
        baseline = self._baseline
        for timer in _TIMERS:
            _signal.setitimer(timer, 0)
        if list(map(_signal.getsignal, _SIGNALS)) != baseline.handlers:
            for number, handler in zip(_SIGNALS, baseline.handlers, strict=True):
                if handler is not None and _signal.getsignal(number) != handler:
                    _signal.signal(number, handler)
        if _signal.pthread_sigmask(_signal.SIG_BLOCK, ()) != baseline.mask:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, baseline.mask)

    def _restore_limits(self) -> None:
        baseline = self._baseline
        if list(map(resource.getrlimit, _LIMITS)) != baseline.limits:
            for limit, values in zip(_LIMITS, baseline.limits, strict=True):
                resource.setrlimit(limit, values)

    def _restore_rest(self) -> None:
        baseline = self._baseline
        for descriptor in range(3):
            if not _is_ours(descriptor):
                os.dup2(self._standard[descriptor], descriptor)
                if not _is_ours(descriptor):
                    raise OSError(f"descriptor {descriptor} cannot be put back")
        os.umask(self._umask)
        os.environ = self._environment  # noqa: B003 - a task may have assigned another one
        if _variables() != baseline.variables:
            _restore_environment(baseline.variables)
        if sys.getrecursionlimit() != baseline.recursion:
            sys.setrecursionlimit(baseline.recursion)
        if _socket.getdefaulttimeout() != baseline.timeout:
            _socket.setdefaulttimeout(baseline.timeout)
        tempfile: Any = sys.modules.get("tempfile")
        if tempfile is not None:
            # Where /tmp is full, this is the working directory of the first task that asked for it.
            tempfile.tempdir = baseline.temporary
        _restore_policy()


def end_helpers() -> bool:
    """End the helpers of multiprocessing that a task started; return whether they have ended."""
    if "multiprocessing.resource_tracker" not in sys.modules:  # which the fork server imports as well
        return True
    helpers = [getattr(sys.modules.get(module), name, None) for module, name in _HELPERS]
    stops = [getattr(helper, "_stop", None) for helper in helpers if _runs(helper)]
    if not stops:
        return True
    import threading

    def end() -> None:
        for stop in stops:
            if stop is not None:
                stop()

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(_HELPER_BOUND)
    return not thread.is_alive()


def _runs(helper: Any) -> bool:
    return any(getattr(helper, name, None) is not None for name in ("_pid", "_forkserver_pid"))


def _is_ours(descriptor: int) -> bool:
    try:
        return fcntl.fcntl(descriptor, _GET_SIGNAL) == _MARKER
    except OSError:
        return False


def _variables() -> Any:
    """Return the environment as bytes. A copy by its items takes twenty times as long."""
    data = getattr(os.environ, "_data", None)
    return dict(os.environ.items()) if data is None else data


def _restore_environment(wanted: dict[Any, Any]) -> None:
    current = _variables()
    for name in current.keys() - wanted.keys():
        os.unsetenv(name)
    for name, value in wanted.items():
        if current.get(name) != value:
            os.putenv(name, value)
    current.clear()
    current.update(wanted)


def _restore_policy() -> None:
    """Put asyncio's default policy back, and with it the state of its current loop, if a task changed it."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and type(asyncio.get_event_loop_policy()) is not asyncio.DefaultEventLoopPolicy:
        asyncio.set_event_loop_policy(None)
