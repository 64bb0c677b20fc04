"""Links of the Service Bus SDK, kept whole: opened in bounded time, anew after a loss, never cancelled.

The SDK's senders and receivers are not safe to cancel (a coroutine that is cancelled while it waits may go on
waiting, or lose a frame that it had just read) and not bounded everywhere. So every call into one runs in a
task of its own: whoever asked for it may be cancelled or lose patience, the call goes on to its end.

A `Link` keeps one SDK handler open. When the handler turns out to be broken the link lets go of it, gets rid
of it in the background once its calls have ended, and makes another at the next call; after failures it waits
a little longer each time before it tries again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from batchflow.azure.errors import broker_error
from batchflow.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_log = logging.getLogger(__name__)

OPEN_LIMIT = 9.0
"""Seconds for opening: an address where nothing answers becomes an error in less than ten."""
CALL_LIMIT = 15.0
"""Seconds for one call; the SDK's own limits are below it."""
CLOSE_LIMIT = 3.0
CLOSE_GRACE = 0.25
"""After the connection is closed the SDK waits up to a second for its keep-alive task, which sleeps: that is
cut short. Closing itself takes milliseconds, for it waits for no answer."""
FIRST_BACKOFF = 0.1
LONGEST_BACKOFF = 5.0


class Handler(Protocol):
    """What the SDK's senders and receivers have in common."""

    def __aenter__(self) -> Coroutine[Any, Any, Any]: ...

    def close(self) -> Coroutine[Any, Any, None]: ...


H = TypeVar("H", bound=Handler)
T = TypeVar("T")


class Calls:
    """The calls under way on one handler."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # else asyncio complains when nobody was left to ask

    async def end(self, patience: float) -> None:
        """Wait for them for `patience` seconds, then cancel them until they obey."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience)
        await cancel_all(self._tasks)


async def cancel_all(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel them again and again, for the SDK may swallow a cancellation; at most for a second."""
    for _ in range(20):
        pending = {task for task in tasks if not task.done()}
        if not pending:
            return
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=0.05)


class _Attached(Generic[H]):
    """One SDK handler and the calls under way on it."""

    def __init__(self, handler: H) -> None:
        self.handler = handler
        self.calls = Calls()
        self.waits = Calls()
        """Calls that wait for a message: closing the handler ends them."""

    async def dispose(self, patience: float) -> None:
        await self.calls.end(patience)
        await close_handler(self.handler)
        await self.waits.end(CLOSE_GRACE)


async def close_handler(handler: Handler) -> None:
    """Close it in bounded time. What goes wrong with a handler that is given up concerns nobody."""
    closing = asyncio.create_task(handler.close())
    done, _ = await asyncio.wait({closing}, timeout=CLOSE_GRACE)
    if not done:
        await cancel_all({closing})
    if closing.done() and not closing.cancelled() and (error := closing.exception()) is not None:
        _log.debug("link.close_failed", extra={"error": type(error).__name__})


class Call(Generic[T]):
    """Something that the SDK does for us, in a task of its own."""

    __slots__ = ("attached", "doing", "task")

    def __init__(self, attached: _Attached[Any], task: asyncio.Task[T], doing: str) -> None:
        self.attached = attached
        self.task = task
        self.doing = doing

    async def wait(self, limit: float) -> bool:
        """Whether it has ended within `limit` seconds. Safe to cancel: the call goes on."""
        if not self.task.done():
            await asyncio.wait({self.task}, timeout=limit)
        return self.task.done()


class Link(Generic[H]):
    """A handler of the SDK that is there when it is needed."""

    def __init__(self, make: Callable[[], H], name: str, setting: str | None, *, once: bool = False) -> None:
        self._make = make
        self.name = name
        self.setting = setting
        self._once = once
        """Never opened anew after a loss: what was locked through it is lost with it."""
        self._attached: _Attached[H] | None = None
        self._opening = asyncio.Lock()
        self._backoff = 0.0
        self._not_before = 0.0
        self._disposals: set[asyncio.Task[None]] = set()
        self.closed = False

    async def open(self) -> H:
        """The handler, opened if there is none."""
        return (await self._ready()).handler

    async def begin(
        self, work: Callable[[H], Coroutine[Any, Any, T]], doing: str, *, waits: bool = False
    ) -> Call[T]:
        """Start `work` on the handler. `waits`: it waits for a message, and ends when the handler closes."""
        attached = self._attached or await self._ready()
        calls = attached.waits if waits else attached.calls
        return Call(attached, calls.start(work(attached.handler)), doing)

    def finish(self, call: Call[T]) -> T:
        """The result of a call that has ended, or the `BrokerError` that stands for what went wrong."""
        try:
            return call.task.result()
        except asyncio.CancelledError:
            raise BrokerError(f"{call.doing}: the link to {self.name} was closed", retryable=True) from None
        except Exception as error:
            if not is_harmless(error):
                self._let_go(call.attached)
            raise broker_error(error, f"{call.doing} ({self.name})", self.setting) from error

    async def call(
        self, work: Callable[[H], Coroutine[Any, Any, T]], doing: str, limit: float = CALL_LIMIT
    ) -> T:
        """Do `work` with the handler. Cancelled, the work goes on."""
        call = await self.begin(work, doing)
        if not await call.wait(limit):
            self._let_go(call.attached)
            raise BrokerError(f"{doing}: no answer from {self.name} in {limit:.0f} s", retryable=True)
        return self.finish(call)

    async def _ready(self) -> _Attached[H]:
        async with self._opening:
            if self._attached is None:
                self._attached = await self._open_another()
            return self._attached

    async def _open_another(self) -> _Attached[H]:
        if self.closed:
            raise BrokerError(f"the link to {self.name} is closed")
        clock = asyncio.get_running_loop().time
        await asyncio.sleep(max(0.0, self._not_before - clock()))
        try:
            attached = await self._attach()
        except BrokerError:
            self._backoff = min(LONGEST_BACKOFF, self._backoff * 2 or FIRST_BACKOFF)
            self._not_before = clock() + self._backoff
            raise
        self._backoff = 0.0
        return attached

    async def _attach(self) -> _Attached[H]:
        doing = f"cannot open a link to {self.name}"
        attached = _Attached(self._make())
        call = Call(attached, attached.calls.start(attached.handler.__aenter__()), doing)
        opened = False
        try:
            if not await call.wait(OPEN_LIMIT):
                raise BrokerError(
                    f"{doing}: no answer in {OPEN_LIMIT:.0f} s", retryable=True, setting=self.setting
                )
            self.finish(call)
            opened = True
        finally:
            if not opened:
                self._dispose(attached, patience=0.0)
        return attached

    def _let_go(self, attached: _Attached[H]) -> None:
        self.closed = self.closed or self._once
        if self._attached is attached:
            self._attached = None
            self._dispose(attached, patience=CLOSE_LIMIT)

    def _dispose(self, attached: _Attached[H], patience: float) -> None:
        task = asyncio.create_task(attached.dispose(patience))
        self._disposals.add(task)
        task.add_done_callback(self._disposals.discard)

    async def aclose(self) -> None:
        """Idempotent, bounded, raises nothing."""
        self.closed = True
        if self._attached is not None:
            attached, self._attached = self._attached, None
            self._dispose(attached, patience=CLOSE_LIMIT)
        while self._disposals:
            await asyncio.wait(self._disposals)


_HARMLESS = frozenset(
    {
        "MessageAlreadySettled",
        "MessageLockLostError",
        "MessageNotFoundError",
        "MessageSizeExceededError",
        "ServiceBusQuotaExceededError",
        "ServiceBusServerBusyError",
    }
)
"""Errors after which the SDK's handler works on."""


def is_harmless(error: BaseException) -> bool:
    """Whether the error concerns one message and leaves the link as it was."""
    return type(error).__name__ in _HARMLESS
