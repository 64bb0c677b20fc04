"""Waits between tries."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from batchflow.errors import BrokerError, MailboxInUse

T = TypeVar("T")

_LONGEST_BACKOFF: Final = 10.0
_OPENING: Final = 3.0
"""Seconds within which an opening that failed is tried again."""


class Backoff:
    """Growing waits between tries, with jitter; seconds."""

    def __init__(self, first: float = 0.1) -> None:
        self._delay = first

    async def wait(self) -> None:
        await asyncio.sleep(self._delay * random.uniform(0.5, 1.0))
        self._delay = min(self._delay * 2, _LONGEST_BACKOFF)


async def opened(opening: Callable[[], Awaitable[T]]) -> T:
    """Open a link; a connection that is cut meanwhile is made again, for a moment. Raises `BrokerError`."""
    clock = asyncio.get_running_loop().time
    until = clock() + _OPENING
    backoff = Backoff()
    while True:
        try:
            return await opening()
        except MailboxInUse:
            raise
        except BrokerError as error:
            if not error.retryable or clock() > until:
                raise
        await backoff.wait()
