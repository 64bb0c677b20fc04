"""Which messages are to be removed from their queue, and when.

Alone, removing a message costs what sending one does: two processes are woken for it. So it rides with the
next result, or waits a moment. Meanwhile the message is under our lock; should the agent die, it comes again.
What was handed back is not to come again beside its copies: such a message does not wait.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

WITHIN: Final = 0.1
"""Seconds that a message waits at most."""
AT_ONCE: Final = 8
"""Removals that may wait for the broker at the same time; when so many are due they do not wait."""


class Completions:
    """The messages whose tasks are all settled; `complete` removes one of them."""

    def __init__(self, complete: Callable[[int], Awaitable[None]]) -> None:
        self._complete = complete
        self._due: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._ready: asyncio.Queue[int] = asyncio.Queue()

    def add(self, number: int) -> None:
        """With the next call of `flush`, or in a moment."""
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
        """What is due is left to its lock."""
        if self._timer is not None:
            self._timer.cancel()

    async def run(self) -> None:
        """Complete one message after the other until cancelled. May run `AT_ONCE` times at once."""
        while True:
            await self._complete(await self._ready.get())
