"""Opening a link of the Service Bus SDK without the SDK's naps.

A link opens in some ten frames of the broker's: connection, session, authentication, link. The SDK (7.15, its
`_open` in senders and receivers) asks its AMQP client whether it is ready, which waits for one frame and
reads it, and sleeps 50 ms before it asks again: half a second for each link, at the start of every client and
agent and after every loss. The sleep waits for nothing, for the next question would. So here the client is
asked again at once, within the SDK's one question.

There is no public way to that. What is used of the SDK is looked for first, and where it is not as expected
the SDK opens its links as it likes; `tests/azure/test_opening.py` tells when that happens.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

QUESTIONS = 100
"""Asked without a nap at most. Each ends with a frame, or after a fraction of a second without any."""


def without_naps(end: T) -> T:
    """The same sender or receiver, not opened yet, which will open, and open again, without naps."""
    sdk: Any = end
    make: Callable[[Any], None] | None = getattr(sdk, "_create_handler", None)
    if make is not None:

        def make_eager(authentication: Any) -> None:
            make(authentication)
            client: Any = getattr(sdk, "_handler", None)
            if (is_ready := getattr(client, "client_ready_async", None)) is not None:
                client.client_ready_async = lambda: _until_ready(client, is_ready)

        sdk._create_handler = make_eager
    return end


async def _until_ready(client: Any, is_ready: Callable[[], Awaitable[bool]]) -> bool:
    """Ready at last, and from then on as before: later the SDK asks to learn, not to wait."""
    for _ in range(QUESTIONS):
        if await is_ready():
            del client.client_ready_async
            return True
        await asyncio.sleep(0)
    return False
