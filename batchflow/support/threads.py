"""Blocking calls in threads that no interpreter waits for when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def in_thread(function: Callable[[*Ts], T], *args: *Ts) -> T:
    """Call a function in a thread of its own; return what it returns. If cancelled, the call goes on.

    The thread is a daemon. Those of `asyncio.to_thread` and of anyio are not: the interpreter waits for them
    at its end, for a call that takes long, and without end for a worker whose event loop was interrupted
    before it told the worker to stop.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def call() -> None:
        try:
            result = function(*args)
        except BaseException as error:
            tell(_fail, error)
        else:
            tell(_resolve, result)

    def tell(how: Callable[..., None], outcome: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(how, future, outcome)

    name = getattr(function, "__qualname__", "call")
    threading.Thread(target=call, name=f"batchflow {name}", daemon=True).start()
    return await future


def _resolve(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[T], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
