"""The event loop and the process that an object was opened in, and outside of which it does not work."""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import socket
import threading
import weakref
from asyncio.tasks import _unregister_task
from pathlib import Path
from typing import Any, Final

from batchflow.errors import WrongEventLoop

_PACKAGE: Final = f"{Path(__file__).resolve().parents[1]}{os.sep}"


class LoopAffinity:
    """Remembers event loop, thread and process of an object's opening, and refuses others."""

    def __init__(self, what: str) -> None:
        """`what`: the object's name in errors."""
        self._what = what
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._thread = 0

    def bind(self) -> None:
        """Note the running event loop. To be called when the object is opened."""
        self._loop, self._pid = asyncio.get_running_loop(), os.getpid()
        self._thread = threading.get_ident()
        _loops.add(self._loop)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop; None before the opening, in a forked child, and when the loop was closed."""
        loop = self._loop
        return None if loop is None or self.is_forked or loop.is_closed() else loop

    @property
    def is_forked(self) -> bool:
        """Whether this process is a forked child of the one that opened the object."""
        return self._loop is not None and os.getpid() != self._pid

    def check(self) -> None:
        """Raise `WrongEventLoop` outside of the object's event loop. An object that is not open passes.

        Where no event loop runs, the thread of the opening passes.
        """
        try:
            loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if self._loop is None or loop is self._loop:
            return  # a forked child has no running loop: asyncio sees to that
        if os.getpid() != self._pid:
            raise WrongEventLoop(
                f"{self._what} was opened in process {self._pid} and is used in process {os.getpid()}, a "
                "forked child: open a client in the child, or start it by multiprocessing's 'spawn' method"
            )
        if loop is None and threading.get_ident() == self._thread:
            return
        if self._loop.is_closed():
            raise WrongEventLoop(
                f"{self._what} was opened in an event loop that has ended: each asyncio.run() has a loop of "
                "its own. Use one asyncio.run() for all, or open a client in each"
            )
        raise WrongEventLoop(
            f"{self._what} belongs to the event loop that opened it and is used in thread "
            f"{threading.current_thread().name!r}, outside of this loop: call it by "
            "asyncio.run_coroutine_threadsafe(), or open another client here"
        )


_loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
"""Event loops in which something was opened."""
_kept: list[asyncio.Task[Any]] = []
"""In a forked child: the parent's tasks, so that they are not finalized while the child works."""


def _leave_to_parent() -> None:
    """Take batchflow's tasks out of the loops of a forked child.

    A child that leaves `asyncio.run()` cancels all tasks that asyncio knows. These would then close the
    connections, which the child shares with its parent. `_unregister_task` is the documented way:
    https://docs.python.org/3/library/asyncio-extending.html
    """
    for loop in list(_loops):
        _part_selectors(loop)
        for task in asyncio.all_tasks(loop):
            if _is_own(task):
                _kept.append(task)
                _unregister_task(task)


def _part_selectors(loop: asyncio.AbstractEventLoop) -> None:
    """Give a forked child an epoll of its own, with all that the parent's has but its connections.

    The kernel's one is shared after a fork. What the child removes when it closes its copy of the loop, the
    parent would wait for in vain, such as the wake-up by other threads. The connections are replaced by
    sockets that lead nowhere, because the parent would miss what the child reads, and get answers to what
    the child asks.
    """
    selector = getattr(loop, "_selector", None)
    if not isinstance(selector, selectors.EpollSelector):
        return
    with select.epoll() as own, socket.socket() as nowhere:
        for key in selector.get_map().values():
            reads = select.EPOLLIN if key.events & selectors.EVENT_READ else 0
            writes = select.EPOLLOUT if key.events & selectors.EVENT_WRITE else 0
            if _is_connection(key.fd):
                os.dup2(nowhere.fileno(), key.fd, inheritable=False)
            else:
                own.register(key.fd, reads | writes)
        os.dup2(own.fileno(), selector.fileno(), inheritable=False)


def _is_connection(descriptor: int) -> bool:
    try:
        with socket.socket(fileno=os.dup(descriptor)) as shared:
            return shared.family in (socket.AF_INET, socket.AF_INET6) and bool(shared.getpeername())
    except OSError:
        return False  # no socket, or one that listens


def _is_own(task: asyncio.Task[Any]) -> bool:
    """Return whether a task runs a coroutine of this package, or of a task group in it."""
    code = getattr(task.get_coro(), "cr_code", None)
    in_package = code is not None and code.co_filename.startswith(_PACKAGE)
    return in_package or task.get_name().startswith("batchflow")


os.register_at_fork(after_in_child=_leave_to_parent)
