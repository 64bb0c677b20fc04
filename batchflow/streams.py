"""The streams that a session is read through: objects with `__anext__` and `aclose`, not generators.

Leaving the loop and coming back, or cancelling a wait, loses nothing.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final, Generic

from batchflow.errors import SessionClosed
from batchflow.model import Event, Result, T_co
from batchflow.results import Results
from batchflow.support.closing import Closes

if TYPE_CHECKING:
    from batchflow.display.progress import Display
    from batchflow.sessions.cancellation import Cancellations
    from batchflow.sessions.map_run import MapRun
    from batchflow.sessions.records.context import Lifetime
    from batchflow.sessions.records.notices import Notices
    from batchflow.sessions.records.outcomes import Outcomes

_ONE_WAIT: Final = frozenset({"__anext__", "_wrap_awaitable"})
"""Coroutines of tasks that wait for one result alone, as `asyncio.wait_for(anext(stream), 1)` makes."""


class ResultStream(AsyncIterator[Result[T_co]], Closes, Generic[T_co]):
    """Results as they come. Closing it, or leaving its `async with`, ends it; what it left stays.

    Their values are of the type that the function returns; of a file's tasks, of any.
    """

    async def collect(self) -> Results[T_co]:
        """Wait for all that come, and return them at the end.

        If cancelled, it loses those that had come, and closes the stream: a `map` cancels the rest.
        """
        try:
            return Results([result async for result in self])
        except asyncio.CancelledError:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Close, and do not wait for it. For functions that cannot await, in the session's event loop."""

    def progress(self, *, total: int | None = None, label: str = "") -> ResultStream[T_co]:
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

    Before its end it cancels what it had submitted: when it is closed, when no variable holds it any more,
    and when the asyncio task that read it last is cancelled and ends. The last rule holds in a notebook too,
    which keeps an exception, and with it the stream. After a `break` or a timeout it can be read on.
    """

    def __init__(self, run: MapRun, ordered: bool, outcomes: Outcomes, cancellations: Cancellations) -> None:
        self._reader: asyncio.Task[Any] | None = None
        """The task that read last."""
        stream = weakref.ref(self)

        def reader_ended(reader: asyncio.Task[Any]) -> None:
            if (kept := stream()) is not None:
                kept.reader_ended(reader)

        self._on_reader_end = reader_ended
        """Without a reference to the stream: a task that goes on must not keep it."""
        self._outcomes = outcomes
        self._cancellations = cancellations
        self._run = run
        self._ordered = ordered
        self._closed = False

    async def __anext__(self) -> Result:
        """Safe to cancel. Raises what the inputs or `submit` raised, after the results of those before."""
        self._outcomes.check_home()
        if not self._closed:
            self._run.start()
            self._watch_reader()
        while not self._closed:
            entry = self._run.take(self._ordered)
            if entry is not None:
                return self._outcomes.result(entry)
            if self._run.exhausted:
                self._closed = True
                self._forget_reader()
                self._run.raise_error()
                break
            if self._outcomes.closed:
                left = self._run.submitted - self._run.yielded
                reason = self._outcomes.close_reason
                raise SessionClosed(f"{reason}; {left} tasks of a map have no outcome yet")
            await self._outcomes.next_change()
        raise StopAsyncIteration

    def _watch_reader(self) -> None:
        reader = asyncio.current_task()
        if reader is self._reader:
            return
        self._forget_reader()
        # A task for one `anext` alone is a wait that may be cancelled, and no loop.
        if reader is not None and getattr(reader.get_coro(), "__name__", "") not in _ONE_WAIT:
            self._reader = reader
            reader.add_done_callback(self._on_reader_end)

    def _forget_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.remove_done_callback(self._on_reader_end)

    def reader_ended(self, reader: asyncio.Task[Any]) -> None:
        """Close, if the task that read last was cancelled. The event loop calls this when it has ended."""
        self._reader = None
        if reader.cancelling():  # a timeout has taken its cancellation back
            self.abandon()

    def abandon(self) -> None:
        if not self._closed:
            self._closed = True
            self._cancellations.give_up(self._run.stop())

    @property
    def left(self) -> int | None:
        return None if self._run.total is None else self._run.total - self._run.yielded

    async def aclose(self) -> None:
        """Cancel what is not done. Idempotent. If cancelled, the work continues in the background."""
        self._outcomes.check_home()
        self._closed = True
        self._forget_reader()
        left = self._run.stop()
        if not left or self._outcomes.closed:
            return
        try:
            await self._cancellations.cancel(left)
        except asyncio.CancelledError:
            self._cancellations.give_up(left)
            raise

    def __del__(self) -> None:
        self._forget_reader()
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
        self._lifetime.affinity.check()
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


class ProgressStream(ResultStream[T_co]):
    """`stream.progress()`: the same results, shown as they are read."""

    def __init__(
        self, stream: ResultStream[T_co], total: int | None, label: str, display: Display | None = None
    ) -> None:
        from batchflow.display.meter import Meter
        from batchflow.display.progress import choose_display

        self._stream = stream
        self._total = total
        self._meter = Meter(label, total)
        self._display = display or choose_display()
        self._shown = -float("inf")
        self._finished = False

    async def __anext__(self) -> Result[T_co]:
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

    def abandon(self) -> None:
        self._finish()
        self._stream.abandon()

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
