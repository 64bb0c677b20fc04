"""Private members of the Azure SDKs that batchflow uses: how links open and stay alive, what is imported.

No other module uses private members.

*Opening.* A link opens in some ten frames from the broker: connection, session, authentication, link. The SDK
(7.15, `_open` of senders and receivers) asks its AMQP client whether it is ready. The client waits for one
frame and reads it; then the SDK sleeps 50 ms before it asks again. That is half a second for each link, at
the start of every client and agent and after every loss. The sleep waits for nothing, because the next
question would wait. So the client is asked again at once, within the SDK's one question.

*Keep-alive.* The SDK's client starts a task that reads the link every 5 s (30 s with prefetch), for up to
0.2 s. The task also reads beside a receive and takes the frame that the receive waits for: the message then
lies in the SDK's own queue until the receive has waited 0.15 s at an empty socket. Closing waits for the
task, which sleeps a second at a time. So no such task is started, and the owner of the handler
(`batchflow.azure.amqp_handler`) calls `keep_alive` while no other call uses the handler.

*Reading.* The SDK reads each frame in an asyncio task of its own, under a timeout: three turns of the event
loop for a frame that has arrived already. While none arrives it wakes after each `socket_timeout`, asks for
the time, and reads again: some 40 calls of epoll a second for one idle link. And a receive that waits cannot
be ended early, so it is cut into short ones where other calls may want the link. `FrameReading` takes the
place of one method of a connection's transport. A frame that has arrived is read in the caller's task.
Otherwise the caller waits for data, without reading, so that nothing is half read when the wait ends. A
receive waits as long as it may, and `interrupt` ends it. So an idle link calls epoll twice a minute, and a
round trip takes six turns of the loop less. Over a WebSocket the transport stays as it is.

*Imports.* The SDKs of Service Bus and of storage import `RequestsTransport` of azure-core, which is for
blocking clients. That loads requests and urllib3: 45 ms and 5 MB of every client and every agent, for
nothing. azure-core itself loads it at its first use. Within `without_requests` the SDKs find a stand-in that
does the same. Other code that uses or imports the transport is not affected.

There is no public way to any of this. The members are looked for first. Where the SDK is not as expected, it
stays as it is; `tests/unit/azure/test_sdk_patches.py` fails when that happens.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from azure.core.pipeline import transport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

NAME: Final = "RequestsTransport"
_SIZE: Final = 4
"""Bytes of a frame's size, with which it begins."""
_MARGIN: Final = 0.005
"""Seconds that a receive waits beyond its time, so that the SDK finds the time over by its own clock."""


@contextmanager
def without_requests() -> Iterator[None]:
    """Run import statements without loading requests. An azure-core that loads it at once stays as it is.

    Gain: 45 ms and 5 MB of each process that imports the SDKs.
    """
    present = vars(transport)
    if NAME not in present and "__getattr__" in present:
        present[NAME] = _LateTransport()
    try:
        yield
    finally:
        if isinstance(present.get(NAME), _LateTransport):
            present.pop(NAME, None)  # another thread may have removed it already


class _LateTransport:
    """A stand-in for the class, which loads it when it is called, subclassed or used for `isinstance`."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return _requests_transport()(*arguments, **options)

    def __mro_entries__(self, _bases: tuple[Any, ...]) -> tuple[type[Any]]:
        return (_requests_transport(),)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, _requests_transport())


def _requests_transport() -> type[Any]:
    found: type[Any] = transport.__getattr__(NAME)
    return found


T = TypeVar("T")

MAX_QUESTIONS: Final = 100
"""Maximum number of polls for a client's readiness without a sleep. Each ends with a frame, or after a
fraction of a second without one."""
READ_LIMIT: Final = 0.01
"""Seconds that one keep-alive reads. Frames that have arrived are in the event loop's buffer already."""


def patched(end: T) -> T:
    """Patch a sender or receiver before it opens: it opens without sleeps and starts no keep-alive task."""
    sdk: Any = end
    make: Callable[[Any], None] | None = getattr(sdk, "_create_handler", None)
    if make is not None:

        def make_patched(authentication: Any) -> None:
            make(authentication)
            client: Any = getattr(sdk, "_handler", None)
            if (is_ready := getattr(client, "client_ready_async", None)) is not None:
                client.client_ready_async = lambda: _until_ready(client, is_ready)
            if hasattr(client, "_keep_alive_interval") and hasattr(client, "_connection"):
                client._keep_alive_interval = 0

        sdk._create_handler = make_patched
    return end


async def _until_ready(client: Any, is_ready: Callable[[], Awaitable[bool]]) -> bool:
    """Wait until the client is ready. Later the SDK asks its own method again."""
    take_over(client)
    for _ in range(MAX_QUESTIONS):
        if await is_ready():
            del client.client_ready_async
            return True
        await asyncio.sleep(0)
    return False


async def keep_alive(end: object) -> None:
    """Read what the broker has sent, and send an empty frame if half the broker's idle timeout has passed.

    Without prefetch, the SDK releases a message that arrives outside a receive. Raises what the SDK raises
    over a connection that is lost. To be called while nothing else uses the handler.
    """
    client: Any = getattr(end, "_handler", None)
    connection: Any = getattr(client, "_connection", None)
    reading = reading_of(end)
    if reading is not None and not reading.has_data:
        await connection.listen(batch=0)
    elif connection is not None:
        credit = getattr(getattr(client, "_link", None), "current_link_credit", 1)
        await connection.listen(wait=READ_LIMIT, batch=max(1, credit))


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
