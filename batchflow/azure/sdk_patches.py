"""Private members of the Azure SDKs that batchflow uses: how links open and stay alive, what is imported.

How links wait for frames is in `batchflow.azure.sdk_reading`. No other module uses private members.

*Opening.* A link opens in some ten frames from the broker: connection, session, authentication, link. The SDK
(7.15, `_open` of senders and receivers) asks its AMQP client whether it is ready. The client waits for one
frame and reads it; then the SDK sleeps 50 ms before it asks again. That is half a second for each link, at
the start of every client and agent and after every loss. The sleep waits for nothing, because the next
question would wait. So the client is asked again at once, within the SDK's one question.

*Keep-alive.* The SDK's client starts a task that reads the link every 5 s (30 s with prefetch), for up to
0.2 s. The task also reads beside a receive and takes the frame that the receive waits for: the message then
lies in the SDK's own queue until the receive has waited 0.15 s at an empty socket. Closing waits for the
task, which sleeps a second at a time. So no such task is started, and the owner of the handler
(`batchflow.azure.amqp_handler`) calls `keep_alive` while no other call uses the handler.

*Imports.* The SDKs of Service Bus and of storage import `RequestsTransport` of azure-core, which is for
blocking clients. That loads requests and urllib3: 45 ms and 5 MB of every client and every agent, for
nothing. azure-core itself loads it at its first use. Within `without_requests` the SDKs find a stand-in that
does the same. Other code that uses or imports the transport is not affected.

There is no public way to any of this. The members are looked for first. Where the SDK is not as expected, it
stays as it is; `tests/unit/azure/test_sdk_patches.py` fails when that happens.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from azure.core.pipeline import transport

from batchflow.azure.sdk_reading import reading_of, take_over

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

NAME: Final = "RequestsTransport"


@contextmanager
def without_requests() -> Iterator[None]:
    """Run import statements without loading requests. An azure-core that loads it at once stays as it is.

    Gain: 45 ms and 5 MB of each process that imports the SDKs.
    """
    present = vars(transport)
    if NAME not in present and "__getattr__" in present:
        present[NAME] = _LateTransport()
    try:
        yield
    finally:
        if isinstance(present.get(NAME), _LateTransport):
            present.pop(NAME, None)  # another thread may have removed it already


class _LateTransport:
    """A stand-in for the class, which loads it when it is called, subclassed or used for `isinstance`."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return _requests_transport()(*arguments, **options)

    def __mro_entries__(self, _bases: tuple[Any, ...]) -> tuple[type[Any]]:
        return (_requests_transport(),)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, _requests_transport())


def _requests_transport() -> type[Any]:
    found: type[Any] = transport.__getattr__(NAME)
    return found


T = TypeVar("T")

MAX_QUESTIONS: Final = 100
"""Maximum number of polls for a client's readiness without a sleep. Each ends with a frame, or after a
fraction of a second without one."""
READ_LIMIT: Final = 0.01
"""Seconds that one keep-alive reads. Frames that have arrived are in the event loop's buffer already."""


def patched(end: T) -> T:
    """Patch a sender or receiver before it opens: it opens without sleeps and starts no keep-alive task."""
    sdk: Any = end
    make: Callable[[Any], None] | None = getattr(sdk, "_create_handler", None)
    if make is not None:

        def make_patched(authentication: Any) -> None:
            make(authentication)
            client: Any = getattr(sdk, "_handler", None)
            if (is_ready := getattr(client, "client_ready_async", None)) is not None:
                client.client_ready_async = lambda: _until_ready(client, is_ready)
            if hasattr(client, "_keep_alive_interval") and hasattr(client, "_connection"):
                client._keep_alive_interval = 0

        sdk._create_handler = make_patched
    return end


async def _until_ready(client: Any, is_ready: Callable[[], Awaitable[bool]]) -> bool:
    """Wait until the client is ready. Later the SDK asks its own method again."""
    take_over(client)
    for _ in range(MAX_QUESTIONS):
        if await is_ready():
            del client.client_ready_async
            return True
        await asyncio.sleep(0)
    return False


async def keep_alive(end: object) -> None:
    """Read what the broker has sent, and send an empty frame if half the broker's idle timeout has passed.

    Without prefetch, the SDK releases a message that arrives outside a receive. Raises what the SDK raises
    over a connection that is lost. To be called while nothing else uses the handler.
    """
    client: Any = getattr(end, "_handler", None)
    connection: Any = getattr(client, "_connection", None)
    reading = reading_of(end)
    if reading is not None and not reading.has_data:
        await connection.listen(batch=0)
    elif connection is not None:
        credit = getattr(getattr(client, "_link", None), "current_link_credit", 1)
        await connection.listen(wait=READ_LIMIT, batch=max(1, credit))
