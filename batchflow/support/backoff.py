"""Backoff between tries, and requests that are repeated until they are accepted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from batchflow.errors import BrokerError, MailboxInUse
from batchflow.support.recovery import Recovery, recovery_of

T = TypeVar("T")

FIRST: Final = 0.1
"""Seconds of the first wait."""
LONGEST: Final = 10.0
"""Seconds of the longest wait."""
_OPENING: Final = 3.0
"""Maximum number of seconds for which a failed opening is tried again."""


class Backoff:
    """Exponential backoff with jitter, so that processes do not all return at once."""

    def __init__(self, first: float = FIRST, longest: float | None = None) -> None:
        """Both in seconds; `longest`: `LONGEST` by default."""
        self.tries = 0
        """Waits since the beginning, or since `reset`."""
        self._first = first
        self._longest = LONGEST if longest is None else longest

    async def wait(self) -> None:
        """Sleep, and double the next wait."""
        delay = min(self._longest, self._first * 2 ** min(self.tries, 16))
        self.tries += 1
        await asyncio.sleep(delay * random.uniform(0.5, 1.0))

    def reset(self) -> None:
        """Begin again with the shortest wait."""
        self.tries = 0


async def until_accepted(request: Callable[[], Awaitable[T]], failed: Callable[[BrokerError], None]) -> T:
    """Make a request until the broker accepts it, with backoff; return what it returned.

    `failed` is called with the error of each try. It raises to give up.
    """
    backoff = Backoff()
    while True:
        try:
            return await request()
        except BrokerError as error:
            failed(error)
        await backoff.wait()


async def opened(opening: Callable[[], Awaitable[T]]) -> T:
    """Open a link; try again for a moment when its connection is cut. Raises `BrokerError`."""
    clock = asyncio.get_running_loop().time
    until = clock() + _OPENING

    def failed(error: BrokerError) -> None:
        if isinstance(error, MailboxInUse) or recovery_of(error) is Recovery.END or clock() > until:
            raise error

    return await until_accepted(opening, failed)
