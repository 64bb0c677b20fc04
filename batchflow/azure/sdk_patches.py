"""Every use of private members of the Azure SDKs: how links open, stay alive and close, and what is imported.

*Naps.* A link opens in some ten frames of the broker's: connection, session, authentication, link. The SDK
(7.15, its `_open` in senders and receivers) asks its AMQP client whether it is ready, which waits for one
frame and reads it, and sleeps 50 ms before it asks again: half a second for each link, at the start of every
client and agent and after every loss. The sleep waits for nothing, for the next question would. So here the
client is asked again at once, within the SDK's one question.

*Keep-alive.* Every five seconds (thirty with prefetch) a task of the SDK's client reads the link, for up to
0.2 s, so that it lives and nothing lies unread in it. It does so also beside a receive, and then takes the
frame that this one waits for: the message lies in the SDK's own queue until the receive has looked for 0.15 s
at a socket where nothing comes. So the time for it does not pass while the link is read, nor right after.

*Closing.* A link that closes, or that the SDK closes because its connection was lost, waits for the
keep-alive, which sleeps for a second at a time; whoever wanted to send learns of the loss only then. So it is
woken.

*Imports.* The SDKs of Service Bus and of storage ask azure-core for its `RequestsTransport` as they are
imported, for clients that block, and so load requests, urllib3 and what these bring: 45 ms and 5 MB of every
client and every agent, and nothing of it is used here. azure-core itself loads it when it is first wanted. So
it is done for the SDKs too: within `sparing` they find something in its place that becomes it when used. A
program that blocks beside this one, or imports it itself, notices nothing.

There is no public way to any. What is used of the SDK is looked for first, and where it is not as expected
the SDK does as it likes; `tests/unit/azure/test_sdk_patches.py` tells when that happens.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from azure.core.pipeline import transport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

NAME: Final = "RequestsTransport"


@contextmanager
def sparing() -> Iterator[None]:
    """For import statements. An azure-core that loads it at once is left as it is."""
    present = vars(transport)
    if NAME not in present and "__getattr__" in present:
        present[NAME] = _Late()
    try:
        yield
    finally:
        if isinstance(present.get(NAME), _Late):
            present.pop(NAME, None)  # another thread may have been quicker


class _Late:
    """Stands for the class: called, subclassed, or asked whether something is one of its."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return _real()(*arguments, **options)

    def __mro_entries__(self, _bases: tuple[Any, ...]) -> tuple[type[Any]]:
        return (_real(),)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, _real())


def _real() -> type[Any]:
    found: type[Any] = transport.__getattr__(NAME)
    return found


T = TypeVar("T")

QUESTIONS: Final = 100
"""Asked without a nap at most. Each ends with a frame, or after a fraction of a second without any."""


def tuned(end: T) -> T:
    """The same sender or receiver, not opened yet, which will open, and open again, without those habits."""
    sdk: Any = end
    make: Callable[[Any], None] | None = getattr(sdk, "_create_handler", None)
    if make is not None:

        def make_tuned(authentication: Any) -> None:
            make(authentication)
            client: Any = getattr(sdk, "_handler", None)
            if (is_ready := getattr(client, "client_ready_async", None)) is not None:
                client.client_ready_async = lambda: _until_ready(client, is_ready)
            if interval := getattr(client, "_keep_alive_interval", None):
                client._keep_alive_interval = _Pace(interval)
            if (close := getattr(client, "close_async", None)) is not None:
                client.close_async = lambda: _close(client, close)

        sdk._create_handler = make_tuned
    return end


async def _until_ready(client: Any, is_ready: Callable[[], Awaitable[bool]]) -> bool:
    """Ready at last, and from then on as before: later the SDK asks to learn, not to wait."""
    for _ in range(QUESTIONS):
        if await is_ready():
            del client.client_ready_async
            return True
        await asyncio.sleep(0)
    return False


async def _close(client: Any, close: Callable[[], Awaitable[None]]) -> None:
    if (keeper := getattr(client, "_keep_alive_thread", None)) is not None:
        client._keep_alive_thread = None
        keeper.cancel()
    await close()


@contextmanager
def reading(end: Any) -> Iterator[None]:
    """While a receive of that end is under way."""
    pace = getattr(getattr(end, "_handler", None), "_keep_alive_interval", None)
    if not isinstance(pace, _Pace):
        yield
        return
    pace.is_read = True
    try:
        yield
    finally:
        pace.is_read = False
        pace.not_before = time.monotonic() + pace


class _Pace(float):
    """Seconds from one look of the keep-alive to the next, which have never passed at a bad moment."""

    is_read = False
    not_before = 0.0
    """Monotonic."""

    def __le__(self, elapsed: float) -> bool:
        """What Python asks for `elapsed >= pace` as well."""
        return not self.is_read and time.monotonic() >= self.not_before and float(self) <= elapsed
