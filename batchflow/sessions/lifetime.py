"""How far a session is: not open, open, closing, or ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from batchflow.errors import SessionClosed


class Lifetime:
    """The part of a session's state that decides whether a call on it still makes sense."""

    def __init__(self, *, is_opened: Callable[[], bool], is_closed: Callable[[], bool]) -> None:
        """`is_opened`: stays true after the closing. `is_closed`: true as soon as the closing has begun."""
        self._is_opened = is_opened
        self._is_closed = is_closed
        self.reason = "closed"
        """Why the session closes: the text of `SessionClosed`."""
        self.ended = False
        """Whether no outcome comes any more."""
        self.loop: asyncio.AbstractEventLoop | None = None
        """The event loop that opened the session."""

    def begin(self) -> None:
        """Note the event loop, in which everything of the session lives."""
        self.loop = asyncio.get_running_loop()

    @property
    def closed(self) -> bool:
        """Whether the session is closing, or closed."""
        return self._is_closed()

    def check_open(self) -> None:
        """Raises `SessionClosed`."""
        if not self._is_opened():
            raise SessionClosed("it was not opened: use `async with` or `await`")
        if self.closed:
            raise SessionClosed(self.reason)

    def check_not_ended(self) -> None:
        """Raises `SessionClosed` when no outcome comes any more."""
        if self.ended:
            raise SessionClosed(self.reason)
