"""What a session is read through: objects with `__anext__` and `aclose`, not generators.

Leaving the loop and coming back, or cancelling a wait, loses nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from batchflow.errors import SessionClosed
from batchflow.model import Event, Result
from batchflow.results import Results
from batchflow.sessions.map_run import MapRun
from batchflow.support.closing import Closes
from batchflow.support.waiting import ChangeNotifier

if TYPE_CHECKING:
    from batchflow.display.progress import Display
    from batchflow.session import Session
_MOST_EVENTS: Final = 10_000


class ResultStream(AsyncIterator[Result], Closes):
    """Results as they come. Closing it, or leaving its `async with`, ends it; what it left stays."""

    async def collect(self) -> Results:
        """All that come, at its end. Cancelled, it loses those that had come."""
        return Results([result async for result in self])

    def progress(self, *, total: int | None = None, label: str = "") -> ResultStream:
        """The same stream, which shows how far it is: in a notebook, on a terminal, or as lines of stderr.

        `total`: how many will come, where the stream cannot tell.
        """
        return ProgressStream(self, total, label)

    @property
    def left(self) -> int | None:
        """How many are to come, as far as it is known now; None when it is not."""
        return None

    async def aclose(self) -> None:
        """Idempotent."""


class SessionResults(ResultStream):
    """`session.results()`: each result that nobody had claimed when it came to be yielded, once."""

    def __init__(self, session: Session, follow: bool) -> None:
        self._session = session
        self._follow = follow
        self._closed = False

    async def __anext__(self) -> Result:
        """Safe to cancel. Raises `SessionClosed` when the session ends with tasks under way."""
        while not self._closed:
            entry = self._session._tracker.next_unclaimed()
            if entry is not None:
                return self._session._result(entry)
            if self._session.closed:
                if self._follow or not self._session._outstanding:
                    break
                left = self._session._outstanding
                raise SessionClosed(f"{self._session._reason}; {left} tasks have no outcome yet")
            if not self._follow and not self._session._outstanding:
                break
            await self._session._next_change()
        raise StopAsyncIteration

    @property
    def left(self) -> int | None:
        return None if self._follow else self._session._outstanding + self._session._tracker.unread

    async def aclose(self) -> None:
        self._closed = True


class MapResults(ResultStream):
    """`session.map(...)`: submits as it is read, so that at most `window` tasks are under way or unread.

    Closed or dropped before its end, it cancels what it had submitted.
    """

    def __init__(self, session: Session, run: MapRun, ordered: bool) -> None:
        self._session = session
        self._run = run
        self._ordered = ordered
        self._closed = False

    async def __anext__(self) -> Result:
        """Safe to cancel. Raises what the inputs or `submit` raised, after the results of those before."""
        if not self._closed:
            self._run.start()
        while not self._closed:
            entry = self._run.take(self._ordered)
            if entry is not None:
                return self._session._result(entry)
            if self._run.exhausted:
                self._closed = True
                self._run.raise_error()
                break
            if self._session.closed:
                left = self._run.submitted - self._run.yielded
                reason = self._session._reason
                raise SessionClosed(f"{reason}; {left} tasks of a map have no outcome yet")
            await self._session._next_change()
        raise StopAsyncIteration

    @property
    def left(self) -> int | None:
        return None if self._run.total is None else self._run.total - self._run.yielded

    async def aclose(self) -> None:
        """Cancel what is not done. Idempotent. Cancelled, it goes on in the background."""
        self._closed = True
        left = self._run.stop()
        if not left or self._session.closed:
            return
        try:
            await self._session._cancel(left)
        except asyncio.CancelledError:
            self._session._give_up(left)
            raise

    def __del__(self) -> None:
        if not self._closed and not self._session.closed:
            self._session._abandon(self._run)


class EventStream(AsyncIterator[Event], Closes):
    """`session.events()`: what the session tells from now on. Bounded: unread, the oldest are dropped."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._events: deque[Event] = deque(maxlen=_MOST_EVENTS)
        self._change = ChangeNotifier()
        self._closed = False
        self.dropped: int = 0
        """How many were dropped because nobody read them."""

    def _tell(self, event: Event) -> None:
        self.dropped += len(self._events) == _MOST_EVENTS
        self._events.append(event)
        self._change.beat()

    async def __anext__(self) -> Event:
        """Safe to cancel. Ends with the session."""
        while not self._closed:
            if self._events:
                return self._events.popleft()
            if self._session.closed:
                break
            await self._change.wait()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Idempotent."""
        self._closed = True
        self._session._streams.discard(self)
        self._change.beat()


class ProgressStream(ResultStream):
    """`stream.progress()`: the same results, shown as they are read."""

    def __init__(
        self, stream: ResultStream, total: int | None, label: str, display: Display | None = None
    ) -> None:
        from batchflow.display.meter import Meter
        from batchflow.display.progress import choose_display

        self._stream = stream
        self._total = total
        self._meter = Meter(label, total)
        self._display = display or choose_display()
        self._shown = -float("inf")
        self._finished = False

    async def __anext__(self) -> Result:
        """Safe to cancel. Raises what the stream raises."""
        self._meter.start(time.monotonic())
        self._show()
        try:
            result = await anext(self._stream)
        except StopAsyncIteration:
            self._finish()
            raise
        self._meter.ended(result.status.value, time.monotonic())
        return result

    @property
    def left(self) -> int | None:
        return self._stream.left

    async def aclose(self) -> None:
        """Close the stream, too. Idempotent."""
        self._finish()
        await self._stream.aclose()

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._shown >= self._display.pause:
            self._shown = now
            self._guess()
            self._display.show(self._meter, now)

    def _finish(self) -> None:
        if not self._finished and self._meter.started is not None:
            self._finished = True
            self._guess()
            self._display.finish(self._meter, time.monotonic())

    def _guess(self) -> None:
        """The total, where nobody said it and the stream can tell."""
        if self._total is None:
            left = self._stream.left
            self._meter.total = None if left is None else self._meter.done + left
