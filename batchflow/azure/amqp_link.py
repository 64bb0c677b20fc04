"""Links of the Service Bus SDK that open in bounded time, reopen after a loss, and are never cancelled.

An `SdkLink` keeps one SDK handler open (see `batchflow.azure.amqp_handler`). When the handler turns out to be
broken the link lets go of it, gets rid of it in the background once its calls have ended, and makes another
at the next call; after failures it waits a little longer each time before it tries again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from batchflow.azure.amqp_handler import Attached, BrokeBefore, Handler, SdkCall
from batchflow.azure.errors import broker_error
from batchflow.errors import BrokerError, QueueNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

OPEN_LIMIT = 9.0
"""Timeout for opening, in seconds. An address where nothing answers is an error in less than ten."""
CALL_LIMIT = 15.0
"""Timeout for one call, in seconds. The SDK's own timeouts are shorter."""
SETTLE_LIMIT = 3.0
"""Seconds that a handler that is closed waits for the calls on it, and for its own opening: cancelled before
it is through, the SDK forgets the socket without closing it."""
FIRST_BACKOFF = 0.1
LONGEST_BACKOFF = 5.0

H = TypeVar("H", bound=Handler)
T = TypeVar("T")


class SdkLink(Generic[H]):
    """A handler of the SDK, opened when it is needed and replaced when it is broken."""

    def __init__(self, make: Callable[[], H], name: str, setting: str | None, *, once: bool = False) -> None:
        self._make = make
        self.name = name
        self.setting = setting
        self._once = once
        """Never opened anew after a loss: what was locked through it is lost with it."""
        self._attached: Attached[H] | None = None
        self._nascent: Attached[H] | None = None
        self._opening = asyncio.Lock()
        self._backoff = 0.0
        self._not_before = 0.0
        self._disposals: set[asyncio.Task[None]] = set()
        self.closed = False

    async def open(self) -> H:
        """Return the handler, opened if there is none."""
        return (await self._ready()).handler

    async def wait_for(self, work: Callable[[H, bool], Coroutine[Any, Any, T]], doing: str) -> SdkCall[T]:
        """Start `work`, which waits for a message, when its turn comes; it ends when the handler closes.

        `work` also learns whether another call wants the handler. Then it reads without waiting.
        """
        return (await self._ready()).wait_for(work, doing)

    def finish(self, call: SdkCall[T]) -> T:
        """Return the result of a call that has ended, or raise its failure as a `BrokerError`."""
        try:
            return call.result()
        except asyncio.CancelledError:
            raise BrokerError(f"{call.doing}: the link to {self.name} was closed", retryable=True) from None
        except BrokeBefore:
            raise BrokerError(f"{call.doing}: the link to {self.name} was lost", retryable=True) from None
        except Exception as error:
            if call.attached.broken:
                self._let_go(call.attached)
            raise self._failure(error, call) from error

    def _failure(self, error: Exception, call: SdkCall[Any]) -> BrokerError:
        """Translate an error. A right that is refused after it was granted is taken for an expired token.

        Reopening shows whether that is so. The SDK renews tokens while it works, not while it is idle.
        """
        doing = f"{call.doing} ({self.name})"
        told = broker_error(error, doing, self.setting)
        refused = told.setting is not None and not told.retryable and not isinstance(told, QueueNotFound)
        if refused and call.attached.opened:
            return BrokerError(f"{doing}: the token has expired, a new one is put: {error}", retryable=True)
        return told

    async def call(
        self, work: Callable[[H], Coroutine[Any, Any, T]], doing: str, limit: float = CALL_LIMIT
    ) -> T:
        """Do `work` with the handler when its turn comes. If cancelled, the work continues."""
        while True:
            call = (await self._ready()).ask(work, doing)
            if not await call.wait(limit):
                self._let_go(call.attached)
                raise BrokerError(f"{doing}: no answer from {self.name} in {limit:.0f} s", retryable=True)
            if not call.broke_before:
                return self.finish(call)

    async def _ready(self) -> Attached[H]:
        if (attached := self._attached) is not None and not attached.broken:
            return attached
        async with self._opening:
            if self._attached is not None and self._attached.broken:
                self._let_go(self._attached)
            if self._attached is None:
                self._attached = await self._open_another()
            return self._attached

    async def _open_another(self) -> Attached[H]:
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
        if self.closed:
            self._dispose(attached, patience=0.0)
            raise BrokerError(f"the link to {self.name} is closed")
        self._backoff = 0.0
        return attached

    async def _attach(self) -> Attached[H]:
        doing = f"cannot open a link to {self.name}"
        attached = self._nascent = Attached(self._make())
        call = attached.ask(lambda handler: handler.__aenter__(), doing)
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

    def _let_go(self, attached: Attached[H]) -> None:
        attached.broken = True
        self.closed = self.closed or self._once
        if self._attached is attached:
            self._attached = None
            self._dispose(attached, patience=SETTLE_LIMIT)

    def _dispose(self, attached: Attached[H], patience: float) -> None:
        task = asyncio.create_task(attached.dispose(patience))
        self._disposals.add(task)
        task.add_done_callback(self._disposals.discard)

    async def aclose(self) -> None:
        """Close the link. Idempotent, bounded, raises nothing."""
        self.closed = True
        if self._nascent is not None:
            await self._nascent.end(SETTLE_LIMIT)
        if self._attached is not None:
            attached, self._attached = self._attached, None
            self._dispose(attached, patience=SETTLE_LIMIT)
        while self._disposals:
            await asyncio.wait(self._disposals)
