"""The streams that a session is read through: objects with `__anext__` and `aclose`, not generators.

Leaving the loop and coming back, or cancelling a wait, loses nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from batchflow.errors import SessionClosed
from batchflow.model import Event, Result
from batchflow.results import Results
from batchflow.support.closing import Closes

if TYPE_CHECKING:
    from batchflow.display.progress import Display
    from batchflow.sessions.cancellation import Cancellations
    from batchflow.sessions.context import Lifetime
    from batchflow.sessions.map_run import MapRun
    from batchflow.sessions.notices import Notices
    from batchflow.sessions.outcomes import Outcomes


class ResultStream(AsyncIterator[Result], Closes):
    """Results as they come. Closing it, or leaving its `async with`, ends it; what it left stays."""

    async def collect(self) -> Results:
        """Return all that come, at the end. Cancelled, it loses those that had come."""
        return Results([result async for result in self])

    def progress(self, *, total: int | None = None, label: str = "") -> ResultStream:
        """Return the same stream, which shows its progress: in a notebook, on a terminal, or on stderr.

        `total`: how many will come, where the stream cannot tell.
        """
        return ProgressStream(self, total, label)

    @property
    def left(self) -> int | None:
        """How many are to come, as far as it is known now; None when it is not."""
        return None

    async def aclose(self) -> None:
        """Close the stream. Idempotent."""


class SessionResults(ResultStream):
    """`session.results()`: each result that no call had claimed when it came to be yielded, once."""

    def __init__(self, outcomes: Outcomes, follow: bool) -> None:
        self._outcomes = outcomes
        self._follow = follow
        self._closed = False

    async def __anext__(self) -> Result:
        """Safe to cancel. Raises `SessionClosed` when the session ends with tasks under way."""
        outcomes = self._outcomes
        while not self._closed:
            if (result := outcomes.next_unclaimed()) is not None:
                return result
            left = outcomes.outstanding
            if outcomes.closed:
                if self._follow or not left:
                    break
                raise SessionClosed(f"{outcomes.close_reason}; {left} tasks have no outcome yet")
            if not self._follow and not left:
                break
            await outcomes.next_change()
        raise StopAsyncIteration

    @property
    def left(self) -> int | None:
        return None if self._follow else self._outcomes.outstanding + self._outcomes.unread

    async def aclose(self) -> None:
        self._closed = True


class MapResults(ResultStream):
    """`session.map(...)`: submits as it is read, so that at most `window` tasks are under way or unread.

    Closed or dropped before its end, it cancels what it had submitted.
    """

    def __init__(self, run: MapRun, ordered: bool, outcomes: Outcomes, cancellations: Cancellations) -> None:
        self._outcomes = outcomes
        self._cancellations = cancellations
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
                return self._outcomes.result(entry)
            if self._run.exhausted:
                self._closed = True
                self._run.raise_error()
                break
            if self._outcomes.closed:
                left = self._run.submitted - self._run.yielded
                reason = self._outcomes.close_reason
                raise SessionClosed(f"{reason}; {left} tasks of a map have no outcome yet")
            await self._outcomes.next_change()
        raise StopAsyncIteration

    @property
    def left(self) -> int | None:
        return None if self._run.total is None else self._run.total - self._run.yielded

    async def aclose(self) -> None:
        """Cancel what is not done. Idempotent. If cancelled, the work continues in the background."""
        self._closed = True
        left = self._run.stop()
        if not left or self._outcomes.closed:
            return
        try:
            await self._cancellations.cancel(left)
        except asyncio.CancelledError:
            self._cancellations.give_up(left)
            raise

    def __del__(self) -> None:
        if not self._closed and not self._outcomes.closed:
            self._cancellations.abandon(self._run)


class EventStream(AsyncIterator[Event], Closes):
    """`session.events()`: what the session tells from now on. Bounded: unread, the oldest are dropped."""

    def __init__(self, notices: Notices, lifetime: Lifetime) -> None:
        self._notices = notices
        self._lifetime = lifetime
        self._queue = notices.subscribe()
        self._closed = False

    @property
    def dropped(self) -> int:
        """Events that were dropped unread."""
        return self._queue.dropped

    async def __anext__(self) -> Event:
        """Safe to cancel. Ends with the session."""
        while not self._closed:
            if (event := self._queue.take()) is not None:
                return event
            if self._lifetime.closed:
                break
            await self._queue.change.wait()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Close the stream. Idempotent."""
        self._closed = True
        self._notices.unsubscribe(self._queue)


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
        """Set the total if the user did not give it and the stream knows it."""
        if self._total is None:
            left = self._stream.left
            self._meter.total = None if left is None else self._meter.done + left
