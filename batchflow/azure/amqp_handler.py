"""A sender or receiver of the Service Bus SDK, and the one task that makes all calls on it.

The SDK's senders and receivers are not safe to cancel (a coroutine that is cancelled while it waits may go on
waiting, or lose a frame that it had just read) and not bounded everywhere. So each has an owner, a task that
makes all calls into it. The caller may be cancelled or time out, and the call still runs to its end.

Calls on one handler take turns. Should the connection break under several, each would have the SDK open
another one. And a call that waits for an answer also reads the frames of the others, which see them
only when their own turn at reading is over. So a receive ends soon when another call wants the handler, and
comes after one of the calls in line, not after all. What follows from a message that came (it is read, given
to a slot, what waited for it goes on and sends something) is begun before the handler is used again: calls on
it would be in its way for as long as half a round trip.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from batchflow.azure.sdk_patches import keep_alive, reading_of
from batchflow.support.cadence import next_turn
from batchflow.support.event_log import event_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_log = event_logger(__name__)

KEEP_ALIVE_INTERVAL = 5.0
"""Seconds without a call until a link is read on which something has arrived. A message that arrives while no
receive waits for it is released no later than this."""
REST_INTERVAL = 30.0
"""Seconds between two looks at a link on which nothing arrives. The broker closes a connection on which it
has received nothing for 240 s."""
RECEIVE_TURN = 0.15
"""Seconds for which a receive waits on when another call wants the link. A settlement is not urgent."""
CLOSE_PATIENCE = (0.1, 0.3, 1.0)
"""Seconds for closing a handler, try after try. It takes milliseconds, for no answer is waited for."""
GIVE_WAY = 5
"""Turns of the event loop to wait after a message: what follows from it passes through a few tasks."""


class Handler(Protocol):
    """The methods that the SDK's senders and receivers have in common."""

    def __aenter__(self) -> Coroutine[Any, Any, Any]: ...

    def close(self) -> Coroutine[Any, Any, None]: ...


H = TypeVar("H", bound=Handler)
T = TypeVar("T")


async def cancel_all(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel tasks repeatedly, for at most a second, because the SDK may swallow a cancellation."""
    for _ in range(20):
        pending = {task for task in tasks if not task.done()}
        if not pending:
            return
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=0.05)


class Attached(Generic[H]):
    """One SDK handler, and the task that makes all calls on it."""

    def __init__(self, handler: H) -> None:
        self.handler = handler
        self.opened = False
        self.broken = False
        self._line: deque[SdkCall[Any]] = deque()
        self._receive: SdkCall[Any] | None = None
        """A wait for a message that has not begun."""
        self._called = False
        """Whether the latest turn was a call's and not a receive's."""
        self._receiving = False
        self._closing = False
        """Stop waiting for messages; queued calls are still made."""
        self._given_up = False
        self._idle: asyncio.Future[None] | None = None
        self._interruption: asyncio.TimerHandle | None = None
        """Ends the receive that waits, for the calls in line."""
        self._owner = asyncio.create_task(self._own())

    def ask(self, work: Callable[[H], Coroutine[Any, Any, T]], doing: str) -> SdkCall[T]:
        """Queue a call, which is made when its turn comes."""
        call: SdkCall[T] = SdkCall(self, lambda: work(self.handler), doing)
        self._line.append(call)
        self._wake(call)
        return call

    def wait_for(self, work: Callable[[H, bool], Coroutine[Any, Any, T]], doing: str) -> SdkCall[T]:
        """Queue a call that waits for a message, one at a time. It ends when the handler closes."""
        call: SdkCall[T] = SdkCall(self, lambda: work(self.handler, bool(self._line)), doing)
        self._receive = call
        self._wake(call)
        return call

    def _wake(self, call: SdkCall[Any]) -> None:
        if self._owner.done():
            self._end(call)
        elif self._idle is not None:
            _resolve(self._idle)
        elif self._receiving and self._interruption is None:
            loop = asyncio.get_running_loop()
            self._interruption = loop.call_later(RECEIVE_TURN, self._interrupt)

    def _interrupt(self) -> bool:
        """End the receive that waits. False where that cannot be done."""
        reading = reading_of(self.handler)
        if reading is None:
            return False
        reading.interrupt()
        return True

    async def _own(self) -> None:
        try:
            while not (self.broken or self._given_up):
                if (call := self._next()) is not None:
                    await self._make(call)
                elif self._closing:
                    return
                else:
                    await self._rest()
        finally:
            for call in self._line:
                self._end(call)
            if self._receive is not None:
                self._end(self._receive)

    async def _rest(self) -> None:
        """Wait for a call. If none comes for a while, keep the link alive."""
        loop = asyncio.get_running_loop()
        self._idle = idle = loop.create_future()
        reading = reading_of(self.handler)
        soon: list[asyncio.TimerHandle] = []

        def read_soon() -> None:
            if not soon:
                soon.append(loop.call_later(KEEP_ALIVE_INTERVAL, _resolve, idle))

        longest = REST_INTERVAL if reading is None else min(REST_INTERVAL, reading.longest)
        timer = loop.call_at(next_turn(longest, loop.time()), _resolve, idle)
        if reading is None or reading.has_data:
            read_soon()
        else:
            reading.arrived = read_soon
        try:
            await idle
        finally:
            self._idle = None
            if reading is not None:
                reading.arrived = None
            for each in (timer, *soon):
                each.cancel()
        if not (self._line or self._receive or self._closing or self._given_up):
            await self._keep_alive()

    async def _keep_alive(self) -> None:
        try:
            await keep_alive(self.handler)
        except Exception as error:
            self.broken = True
            _log.debug("link.lost_while_idle", extra={"error": type(error).__name__})

    def _next(self) -> SdkCall[Any] | None:
        """Return the call whose turn it is."""
        receive = None if self._closing else self._receive
        if receive is not None and (self._called or not self._line):
            self._receive, self._called, self._receiving = None, False, True
            return receive
        if self._line:
            self._called = True
            return self._line.popleft()
        return None

    async def _make(self, call: SdkCall[Any]) -> None:
        try:
            result = await call.work()
        except asyncio.CancelledError as error:
            call.end(error=error)
            raise
        except Exception as error:
            self.broken = self.broken or not is_harmless(error)  # at once, before the next one has its turn
            call.end(error=error)
        else:
            call.end(result)
            if self._receiving and result:
                for _ in range(GIVE_WAY):
                    await asyncio.sleep(0)
        finally:
            self._receiving = False
            if self._interruption is not None:
                self._interruption.cancel()
                self._interruption = None

    def _end(self, call: SdkCall[Any]) -> None:
        """End a call that has not begun and will not begin."""
        call.end(error=BrokeBefore() if self.broken else asyncio.CancelledError())

    async def end(self, patience: float) -> None:
        """Make the queued calls for at most `patience` seconds, then no more."""
        self._closing = True
        if self._idle is not None:
            _resolve(self._idle)
        await asyncio.wait({self._owner}, timeout=patience)
        self._given_up = True
        await cancel_all({self._owner})

    async def dispose(self, patience: float) -> None:
        """Make the queued calls, then close the handler. A wait for a message ends."""
        self._closing = True
        if self._receiving and not self._interrupt() and not self._line:
            self._given_up = True
        else:
            await self.end(patience)
        await close_handler(self.handler)
        await self.end(CLOSE_PATIENCE[0])


async def close_handler(handler: Handler) -> None:
    """Close a handler in bounded time. An error of a handler that is given up is only logged.

    An attempt that takes too long is cancelled, and closing is tried again with a longer limit. If nothing
    is left to close, it ends at once.
    """
    for patience in CLOSE_PATIENCE:
        closing = asyncio.create_task(handler.close())
        await asyncio.wait({closing}, timeout=patience)
        await cancel_all({closing})
        if closing.done() and not closing.cancelled():
            if (error := closing.exception()) is not None:
                _log.debug("link.close_failed", extra={"error": type(error).__name__})
            return


class SdkCall(Generic[T]):
    """A call into the SDK. It runs to its end, even if its caller no longer waits."""

    __slots__ = ("_error", "_over", "_result", "_waiter", "attached", "doing", "work")

    def __init__(
        self, attached: Attached[Any], work: Callable[[], Coroutine[Any, Any, T]], doing: str
    ) -> None:
        self.attached = attached
        self.work = work
        self.doing = doing
        self._over = False
        self._result: T | None = None
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    def end(self, result: T | None = None, error: BaseException | None = None) -> None:
        """Mark the call as ended, and wake its waiter."""
        if self._over:
            return
        self._over, self._result, self._error = True, result, error
        if self._waiter is not None:
            _resolve(self._waiter)

    @property
    def over(self) -> bool:
        return self._over

    @property
    def cancelled(self) -> bool:
        """Whether the call was ended early, or not begun, because the handler was given up."""
        return isinstance(self._error, asyncio.CancelledError)

    @property
    def broke_before(self) -> bool:
        """Whether the call has ended before it began, because the handler broke."""
        return isinstance(self._error, BrokeBefore)

    def result(self) -> T:
        """Return the result of a call that has ended, or raise its error."""
        if self._error is not None:
            raise self._error
        return cast("T", self._result)

    async def wait(self, limit: float) -> bool:
        """Wait at most `limit` seconds; tell whether the call has ended. For one caller at a time.

        Safe to cancel: the call goes on.
        """
        if not self._over:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(limit, _resolve, self._waiter)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        return self._over


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class BrokeBefore(Exception):
    """The handler broke before the call had its turn: nothing was done."""


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
"""Errors after which the SDK's handler still works."""


def is_harmless(error: BaseException) -> bool:
    """Tell whether the error concerns one message only and leaves the link as it was."""
    return type(error).__name__ in _HARMLESS
