"""Links of the Service Bus SDK, kept whole: opened in bounded time, anew after a loss, never cancelled.

The SDK's senders and receivers are not safe to cancel (a coroutine that is cancelled while it waits may go on
waiting, or lose a frame that it had just read) and not bounded everywhere. So every call into one runs in a
task of its own: whoever asked for it may be cancelled or lose patience, the call goes on to its end.

Calls on one handler take turns. Should the connection break under several, each would have the SDK open
another, over the other's head; and whoever waits for an answer reads what comes for the others, which see it
only when their own turn at reading is over. So a receive is kept short while others may want the handler.

A `Link` keeps one SDK handler open. When the handler turns out to be broken the link lets go of it, gets rid
of it in the background once its calls have ended, and makes another at the next call; after failures it waits
a little longer each time before it tries again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from batchflow.azure.errors import broker_error
from batchflow.errors import BrokerError, QueueNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_log = logging.getLogger(__name__)

OPEN_LIMIT = 9.0
"""Seconds for opening: an address where nothing answers becomes an error in less than ten."""
CALL_LIMIT = 15.0
"""Seconds for one call; the SDK's own limits are below it."""
SETTLE_LIMIT = 3.0
"""Seconds that a handler that is closed waits for the calls on it, and for its own opening: cancelled before
it is through, the SDK forgets the socket without closing it."""
CLOSE_PATIENCE = (0.1, 0.3, 1.0)
"""Seconds for closing a handler, try after try. It takes milliseconds, for no answer is waited for."""
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
        self.opened = False
        self.broken = False
        self.turn = asyncio.Lock()
        self.line = asyncio.Lock()
        """Calls stand in line for the turn, so that a receive comes after one of them, not after all."""
        self.wanted = 0
        """Calls in line."""
        self.calls = Calls()
        self.waits = Calls()
        """Calls that wait for a message: closing the handler ends them."""

    async def dispose(self, patience: float) -> None:
        await self.calls.end(patience)
        await close_handler(self.handler)
        await self.waits.end(CLOSE_PATIENCE[0])


async def close_handler(handler: Handler) -> None:
    """Close it in bounded time. What goes wrong with a handler that is given up concerns nobody.

    With the connection closed, the SDK waits up to a second for its keep-alive task, which sleeps; that is
    cut short. Because the cut may also hit sooner, closing is tried again, with more patience each time:
    where nothing is left to do it ends at once.
    """
    for patience in CLOSE_PATIENCE:
        closing = asyncio.create_task(handler.close())
        await asyncio.wait({closing}, timeout=patience)
        await cancel_all({closing})
        if closing.done() and not closing.cancelled():
            if (error := closing.exception()) is not None:
                _log.debug("link.close_failed", extra={"error": type(error).__name__})
            return


class Call(Generic[T]):
    """Something that the SDK does for us, in a task of its own."""

    __slots__ = ("attached", "doing", "task")

    def __init__(self, attached: _Attached[Any], task: asyncio.Task[T], doing: str) -> None:
        self.attached = attached
        self.task = task
        self.doing = doing

    @property
    def broke_before(self) -> bool:
        """Whether it has ended without having been begun."""
        return not self.task.cancelled() and isinstance(self.task.exception(), _BrokeBefore)

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
        self._nascent: _Attached[H] | None = None
        self._opening = asyncio.Lock()
        self._backoff = 0.0
        self._not_before = 0.0
        self._disposals: set[asyncio.Task[None]] = set()
        self.closed = False

    async def open(self) -> H:
        """The handler, opened if there is none."""
        return (await self._ready()).handler

    async def wait_for(self, work: Callable[[H, bool], Coroutine[Any, Any, T]], doing: str) -> Call[T]:
        """Start `work`, which waits for a message, when its turn comes; it ends when the handler closes.

        `work` is also told whether somebody else wants the handler; then it shall only look.
        """
        attached = await self._ready()
        return Call(attached, attached.waits.start(_wait_in_turn(attached, work)), doing)

    def finish(self, call: Call[T]) -> T:
        """The result of a call that has ended, or the `BrokerError` that stands for what went wrong."""
        try:
            return call.task.result()
        except asyncio.CancelledError:
            raise BrokerError(f"{call.doing}: the link to {self.name} was closed", retryable=True) from None
        except _BrokeBefore:
            raise BrokerError(f"{call.doing}: the link to {self.name} was lost", retryable=True) from None
        except Exception as error:
            if call.attached.broken:
                self._let_go(call.attached)
            raise self._told(error, call) from error

    def _told(self, error: Exception, call: Call[Any]) -> BrokerError:
        """What was permitted and is no longer has an expired token: opening anew tells whether there is more
        to it. The SDK renews tokens while it works, and not while it is idle."""
        doing = f"{call.doing} ({self.name})"
        told = broker_error(error, doing, self.setting)
        refused = told.setting is not None and not told.retryable and not isinstance(told, QueueNotFound)
        if refused and call.attached.opened:
            return BrokerError(f"{doing}: the token has expired, a new one is put: {error}", retryable=True)
        return told

    async def call(
        self, work: Callable[[H], Coroutine[Any, Any, T]], doing: str, limit: float = CALL_LIMIT
    ) -> T:
        """Do `work` with the handler when its turn has come. Cancelled, the work goes on."""
        while True:
            attached = await self._ready()
            call = Call(attached, attached.calls.start(_call_in_turn(attached, work)), doing)
            if not await call.wait(limit):
                self._let_go(call.attached)
                raise BrokerError(f"{doing}: no answer from {self.name} in {limit:.0f} s", retryable=True)
            if not call.broke_before:
                return self.finish(call)

    async def _ready(self) -> _Attached[H]:
        if (attached := self._attached) is not None and not attached.broken:
            return attached
        async with self._opening:
            if self._attached is not None and self._attached.broken:
                self._let_go(self._attached)
            if self._attached is None:
                self._attached = await self._open_another()
            return self._attached

    async def _open_another(self) -> _Attached[H]:
        clock = asyncio.get_running_loop().time
        await asyncio.sleep(max(0.0, self._not_before - clock()))
        if self.closed:
            raise BrokerError(f"the link to {self.name} is closed")
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
        attached = self._nascent = _Attached(self._make())
        call = Call(attached, attached.calls.start(attached.handler.__aenter__()), doing)
        opened, patience = False, SETTLE_LIMIT
        try:
            if not await call.wait(OPEN_LIMIT):
                patience = 0.0
                raise BrokerError(
                    f"{doing}: no answer in {OPEN_LIMIT:.0f} s", retryable=True, setting=self.setting
                )
            self.finish(call)
            opened = attached.opened = True
        finally:
            self._nascent = None
            if not opened:
                self._dispose(attached, patience)
        return attached

    def _let_go(self, attached: _Attached[H]) -> None:
        attached.broken = True
        self.closed = self.closed or self._once
        if self._attached is attached:
            self._attached = None
            self._dispose(attached, patience=SETTLE_LIMIT)

    def _dispose(self, attached: _Attached[H], patience: float) -> None:
        task = asyncio.create_task(attached.dispose(patience))
        self._disposals.add(task)
        task.add_done_callback(self._disposals.discard)

    async def aclose(self) -> None:
        """Idempotent, bounded, raises nothing."""
        self.closed = True
        if self._nascent is not None:
            await self._nascent.calls.end(SETTLE_LIMIT)
        if self._attached is not None:
            attached, self._attached = self._attached, None
            self._dispose(attached, patience=SETTLE_LIMIT)
        while self._disposals:
            await asyncio.wait(self._disposals)


class _BrokeBefore(Exception):
    """The handler broke before the call had its turn: nothing was done."""


async def _call_in_turn(attached: _Attached[H], work: Callable[[H], Coroutine[Any, Any, T]]) -> T:
    attached.wanted += 1
    try:
        async with attached.line:
            return await _in_turn(attached, work)
    finally:
        attached.wanted -= 1


async def _wait_in_turn(attached: _Attached[H], work: Callable[[H, bool], Coroutine[Any, Any, T]]) -> T:
    return await _in_turn(attached, lambda handler: work(handler, attached.wanted > 0))


async def _in_turn(attached: _Attached[H], work: Callable[[H], Coroutine[Any, Any, T]]) -> T:
    async with attached.turn:
        if attached.broken:
            raise _BrokeBefore
        return await _watched(attached, work)


async def _watched(attached: _Attached[H], work: Callable[[H], Coroutine[Any, Any, T]]) -> T:
    """Note at once that the handler broke, before the next call has its turn."""
    try:
        return await work(attached.handler)
    except Exception as error:
        attached.broken = attached.broken or not is_harmless(error)
        raise


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
