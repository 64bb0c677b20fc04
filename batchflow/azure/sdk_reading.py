"""How the Service Bus SDK waits for frames: without a task for each frame, and without waking in vain.

The SDK (7.15) reads each frame in an asyncio task of its own, under a timeout: three turns of the event loop
for a frame that has arrived already. While none arrives it wakes after each `socket_timeout`, asks for the
time, and reads again: some 40 calls of epoll a second for one idle link. And a receive that waits cannot be
ended early, so it is cut into short ones where other calls may want the link.

`FrameReading` takes the place of one method of a connection's transport. A frame that has arrived is read in
the caller's task. Otherwise the caller waits for data, without reading, so that nothing is half read when
the wait ends. A receive waits as long as it may, and `interrupt` ends it.

The members of the SDK, and of asyncio's stream reader, are looked for first. Where they are not as expected,
as over a WebSocket, the transport stays as it is. `tests/unit/azure/test_sdk_reading.py` fails when that
happens.

Gain: an idle link calls epoll twice a minute, and a round trip takes six turns of the loop less.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_SIZE: Final = 4
"""Bytes of a frame's size, with which it begins."""
_MARGIN: Final = 0.005
"""Seconds that a receive waits beyond its time, so that the SDK finds the time over by its own clock."""


class FrameReading:
    """The reading of one connection's frames."""

    def __init__(self, connection: Any) -> None:
        """Take over the transport's `receive_frame`. The connection must be open."""
        transport = connection._transport
        self._connection = connection
        self._read = transport.receive_frame
        self._reader = transport.reader
        self._whole = False
        """Whether it is known that the SDK holds no part of a frame."""
        self._waiters: list[asyncio.Future[None]] = []
        self._until: float | None = None
        """Until when a receive waits, by the loop's clock."""
        self._interrupted = False
        self.arrived: Callable[[], None] | None = None
        """Called when data or the connection's end arrives."""
        for name in ("feed_data", "feed_eof", "set_exception"):
            setattr(self._reader, name, self._telling(getattr(self._reader, name)))
        transport.receive_frame = self.receive_frame

    def _telling(self, method: Callable[..., None]) -> Callable[..., None]:
        def tell(*arguments: Any) -> None:
            method(*arguments)
            self._wake()
            if self.arrived is not None:
                self.arrived()

        return tell

    @property
    def has_data(self) -> bool:
        """Whether reading would not wait, or would find the connection's end."""
        reader = self._reader
        return bool(reader._buffer) or reader.at_eof() or reader.exception() is not None

    @property
    def _has_frame(self) -> bool:
        buffer = self._reader._buffer
        return self._whole and len(buffer) > _SIZE and int.from_bytes(buffer[:_SIZE], "big") <= len(buffer)

    @property
    def longest(self) -> float:
        """Seconds that may pass between two calls of the SDK, which sends an empty frame when one is due.

        The SDK sends it after half of the broker's idle timeout.
        """
        return (self._connection._remote_idle_timeout_send_frame or math.inf) / 2

    async def receive_frame(self, timeout: float | None = None, **options: Any) -> tuple[Any, Any]:
        """Return the next frame's channel and content; None and None when none came within `timeout` seconds.

        Raises what the SDK raises over a lost connection.
        """
        if not self.has_data and not await self._data(timeout):
            return None, None
        found: tuple[Any, Any] = await self._read(timeout=None if self._has_frame else timeout, **options)
        self._whole = found[1] is not None
        return found

    async def _data(self, timeout: float | None) -> bool:
        """Wait for data, at most `timeout` seconds, in a receive as long as that may take."""
        if self._interrupted:
            return False
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiters.append(waiter)
        timer = None
        if timeout is not None:
            now = loop.time()
            until = max(now + timeout, min(self._until or 0.0, now + self.longest))
            timer = loop.call_at(until, _resolve, waiter)
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)
            if timer is not None:
                timer.cancel()
        return self.has_data

    def _wake(self) -> None:
        for waiter in self._waiters:
            _resolve(waiter)

    async def receive(self, receiver: Any, wait: float) -> list[Any]:
        """Receive one message, or none within `wait` seconds, or before `interrupt` is called."""
        self._until = asyncio.get_running_loop().time() + wait + _MARGIN
        try:
            messages: list[Any] = await receiver.receive_messages(1, max_wait_time=wait)
        finally:
            self._until, self._interrupted = None, False
        return messages

    def interrupt(self) -> None:
        """End the receive that waits, if one does; what has arrived is received first."""
        if self._until is not None:
            self._interrupted = True
            self._wake()

    async def work(self, do_work: Callable[..., Any], **options: Any) -> bool:
        """Do the SDK's next step of a receive; tell whether to go on."""
        return bool(await do_work(**options)) and not self._interrupted


def take_over(client: Any) -> None:
    """Take over the reading of an open AMQP client's connection, unless that was done before."""
    connection = getattr(client, "_connection", None)
    transport = getattr(connection, "_transport", None)
    if not _is_as_expected(client, connection, transport) or _reading(transport) is not None:
        return
    reading, do_work = FrameReading(connection), client.do_work_async
    client.do_work_async = lambda **options: reading.work(do_work, **options)


def _is_as_expected(client: Any, connection: Any, transport: Any) -> bool:
    reader = getattr(transport, "reader", None)
    return (
        isinstance(reader, asyncio.StreamReader)
        and isinstance(getattr(reader, "_buffer", None), bytearray)
        and hasattr(transport, "receive_frame")
        and hasattr(connection, "_remote_idle_timeout_send_frame")
        and hasattr(client, "do_work_async")
    )


def _reading(transport: Any) -> FrameReading | None:
    found = getattr(getattr(transport, "receive_frame", None), "__self__", None)
    return found if isinstance(found, FrameReading) else None


def reading_of(end: object) -> FrameReading | None:
    """Return the reading of a sender's or receiver's connection; None where the SDK's own is in place."""
    connection = getattr(getattr(end, "_handler", None), "_connection", None)
    return _reading(getattr(connection, "_transport", None))


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
