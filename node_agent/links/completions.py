"""Decides when the agent completes messages whose tasks are all settled.

Completing a message alone costs as much as sending one, because it wakes two processes. So it is done with
the next result, or after a moment. Meanwhile the agent holds the lock. If the agent dies, the broker
redelivers the message. A message whose tasks were handed back does not wait, because it must not run beside
their copies.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

WITHIN: Final = 0.1
"""Maximum number of seconds that a message waits."""
AT_ONCE: Final = 8
"""Maximum number of completions in flight. When so many are due they start at once."""


class Completions:
    """The messages whose tasks are all settled. `complete` removes one of them."""

    def __init__(self, complete: Callable[[int], Awaitable[None]]) -> None:
        self._complete = complete
        self._due: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._ready: asyncio.Queue[int] = asyncio.Queue()

    def add(self, number: int) -> None:
        """Remove this message with the next `flush`, at the latest `WITHIN` seconds from now."""
        self._due.append(number)
        if len(self._due) >= AT_ONCE:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WITHIN, self.flush)

    def flush(self) -> None:
        """Begin to remove what is due."""
        if not self._due:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due, self._due = self._due, []
        for number in due:
            self._ready.put_nowait(number)

    def close(self) -> None:
        """Stop the timer. Messages that are due stay under their locks, and are redelivered."""
        if self._timer is not None:
            self._timer.cancel()

    async def run(self) -> None:
        """Complete one message after the other until cancelled. May run `AT_ONCE` times at once."""
        while True:
            await self._complete(await self._ready.get())
