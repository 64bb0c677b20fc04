"""Ends the agent when a callback of the event loop raises.

The loop itself only logs the exception. The event that the callback had for the scheduler would be lost: the
agent would report that it is ready, run nothing, and leave the tasks of its pool waiting.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import contextmanager
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

BOUND: Final = 15.0
"""Maximum number of seconds for an orderly end, because the callback that failed may be needed for it."""
_OURS: Final = frozenset({"anyio", "batchflow", "node_agent"})
"""Packages whose callbacks the agent depends on: its own, and the task groups in which its services run."""


class CallbackFailed(Exception):
    """A callback of the event loop has raised."""


@contextmanager
def fatal() -> Iterator[None]:
    """End the task that entered this with `CallbackFailed` when a callback of ours raises.

    The process ends after `BOUND` seconds at the latest."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    failures: list[BaseException] = []
    bound: asyncio.TimerHandle | None = None

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal bound
        if not is_ours(context):
            loop.default_exception_handler(context)
            return
        error = context["exception"]
        logger.critical("callback_failed", extra={"callback": context["message"]}, exc_info=error)
        failures.append(error)
        if bound is None:
            bound = loop.call_later(BOUND, _leave)
            task.cancel()

    loop.set_exception_handler(handle)
    try:
        yield
    except asyncio.CancelledError:
        if not failures:
            raise
        task.uncancel()
    finally:
        loop.set_exception_handler(None)
        if bound is not None:
            bound.cancel()
    if failures:
        raise CallbackFailed("a callback of the event loop has failed") from failures[0]


def is_ours(context: dict[str, Any]) -> bool:
    """Tell whether the exception that the loop reports was raised in a callback of ours.

    The loop names a `handle` when a callback has raised, and only then: neither for a task's exception that
    was not retrieved, nor for sessions and transports that were not closed, nor when the peer breaks off a
    connection. Those lose nothing that the scheduler waits for. Callbacks of the SDKs and of asyncio's own
    transports have handles as well, and may raise when a connection ends at the wrong moment: the part that
    uses the connection sees that and opens another one. So the traceback must have code of ours, too.
    """
    error = context.get("exception")
    if "handle" not in context or error is None:
        return False
    names = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    return any(name.partition(".")[0] in _OURS for name in names)


def _leave() -> None:
    logger.critical("agent_did_not_end", extra={"within": BOUND})
    os._exit(1)
