"""The local Service Bus on one loopback port: AMQP, AMQP over TLS and HTTPS, told apart by the first byte.

The administration client of the Azure SDKs always speaks https to the host and port that messages go to, so
one port serves both. The sans-IO :mod:`.core.broker` makes all decisions; this module
owns sockets, tasks and the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, cast

from batchflow.local.http.internal_errors import InternalErrors
from batchflow.local.servicebus.admin import administration
from batchflow.local.servicebus.core.broker import STRANGER_TIMEOUT, BrokerCore, Peer
from batchflow.local.servicebus.core.namespace import ROOT_RULE, Namespace

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from batchflow.local.security.entra import Directory

_TLS_HANDSHAKE = b"\x16"
_TLS_SHUTDOWN_TIMEOUT = 5.0
_BACKLOG = 512
_ACCEPT_PAUSE = 0.5
_SHUTDOWN_TIMEOUT = 2.0


class ServiceBusServer:
    """A Service Bus namespace on a loopback port.

    ``key`` is that of the rule RootManageSharedAccessKey. ``ssl_context`` is the server's side of TLS;
    without it there is no administration over HTTPS. ``latency`` delays every answer by so many seconds,
    without limiting how many are under way. ``link_idle_timeout``, in seconds, is after how long without
    traffic a link is detached; a connection without links is closed after half of it. ``directory`` knows who
    comes with a token of Entra ID. ``stranger_timeout``, in seconds, is how long a connection may take for
    its handshake of TLS, and then for its first bytes. ``errors`` counts what fails in the server.

    Open with :meth:`start`, close with :meth:`aclose`, in whichever tasks.
    """

    def __init__(
        self,
        *,
        key: str,
        ssl_context: ssl.SSLContext | None = None,
        latency: float = 0.0,
        link_idle_timeout: float = 600.0,
        directory: Directory | None = None,
        stranger_timeout: float = STRANGER_TIMEOUT,
        errors: InternalErrors | None = None,
    ) -> None:
        self.port = 0
        self._key = key
        self._ssl_context = ssl_context
        self._latency = latency
        self._host = ""
        self._epoch = time.time() - time.monotonic()
        namespace = Namespace(key, lambda: os.urandom(16), self._now(), directory=directory)
        self._errors = errors or InternalErrors()
        self._broker = BrokerCore(
            namespace, link_idle_timeout=link_idle_timeout, on_error=lambda where: self._errors.note(where)
        )
        self._stranger_timeout = stranger_timeout
        self._server: asyncio.Task[None] | None = None
        self._wires: dict[Peer, _AmqpWire] = {}
        self._vacant = asyncio.Event()
        self._vacant.set()
        self._strangers: dict[asyncio.Transport, asyncio.TimerHandle] = {}
        self._asked: set[Peer] = set()
        """Those that have sent something in this turn of the loop."""
        self._flush_planned = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    @property
    def connection_string(self) -> str:
        """What the SDKs connect with, as the namespace's administrator."""
        return (
            f"Endpoint=sb://{self._host}:{self.port};SharedAccessKeyName={ROOT_RULE};"
            f"SharedAccessKey={self._key};UseDevelopmentEmulator=true"
        )

    @property
    def broker(self) -> BrokerCore:
        """The namespace and its connections, for tests to look at."""
        return self._broker

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; port 0 is any free one. Raises OSError when it cannot. Not to be cancelled half-way."""
        listener = socket.create_server((host, port), backlog=_BACKLOG)
        listener.setblocking(False)
        self._host, self.port = host, listener.getsockname()[1]
        self._server = asyncio.create_task(self._serve(listener), name="servicebus-server")

    async def aclose(self) -> None:
        """Stop listening and drop all connections. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await server
        await self._vacant.wait()

    # -- faults, for tests ----------------------------------------------------------------------------

    def drop_connections(self) -> None:
        """Cut every AMQP connection now, without a word."""
        for wire in list(self._wires.values()):
            wire.abort()

    def throttle(self, seconds: float) -> None:
        """Answer every request with server-busy (50009) for a while, and hold messages back."""
        self._broker.throttle(seconds, self._now())
        self.plan_flush()

    def expire_tokens(self) -> None:
        """Let all tokens that were put expire now: links whose client puts no new one are detached."""
        self._broker.expire_tokens(self._now())
        self.plan_flush()

    # -- listening ------------------------------------------------------------------------------------

    async def _serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        admin = administration(
            self._broker, self._now, self._latency, self.plan_flush, self._errors, self._stranger_timeout
        )
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    try:
                        connection, _ = await loop.sock_accept(listener)
                    except OSError:  # out of descriptors: those who are connected go on, the others wait
                        await asyncio.sleep(_ACCEPT_PAUSE)
                        continue
                    group.create_task(self._welcome(connection, admin), name="servicebus-welcome")
        finally:
            listener.close()
            self._stop()
            await admin.shutdown(_SHUTDOWN_TIMEOUT)

    async def _welcome(self, connection: socket.socket, admin: Callable[[], asyncio.Protocol]) -> None:
        """Find out what a new connection speaks, and hand it over. Nothing is read of it before."""
        loop = asyncio.get_running_loop()
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            first = await asyncio.wait_for(_peek(connection), self._stranger_timeout)
            if first == _TLS_HANDSHAKE and self._ssl_context is not None:
                await loop.connect_accepted_socket(
                    lambda: _Sniffer(self._amqp, admin, self._meet, self._part),
                    connection,
                    ssl=self._ssl_context,
                    ssl_handshake_timeout=self._stranger_timeout,
                    ssl_shutdown_timeout=_TLS_SHUTDOWN_TIMEOUT,
                )
            elif first == b"A":
                await loop.connect_accepted_socket(self._amqp, connection)
            else:
                connection.close()
        except (OSError, TimeoutError):
            connection.close()
        except BaseException:
            connection.close()
            raise

    def _amqp(self) -> _AmqpWire:
        return _AmqpWire(self, self._broker.connect(self._now()))

    def _meet(self, transport: asyncio.Transport) -> None:
        """Give a connection inside TLS its time to say what it speaks."""
        loop = asyncio.get_running_loop()
        self._strangers[transport] = loop.call_later(self._stranger_timeout, transport.abort)

    def _part(self, transport: asyncio.Transport) -> None:
        """Take the timer of a connection away that has said what it speaks, or is gone."""
        timer = self._strangers.pop(transport, None)
        if timer is not None:
            timer.cancel()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for wire in list(self._wires.values()):
            wire.abort()
        for transport in list(self._strangers):
            transport.abort()

    # -- connections ----------------------------------------------------------------------------------

    def _now(self) -> float:
        """Return the seconds since the epoch, by a clock that never goes back."""
        return self._epoch + time.monotonic()

    def connected(self, wire: _AmqpWire) -> None:
        """Start a new connection."""
        self._wires[wire.peer] = wire
        self._vacant.clear()

    def received(self, wire: _AmqpWire, data: bytes) -> None:
        """Handle received bytes. Their replies leave at the end of this turn of the loop."""
        wire.peer.receive(data, self._now())
        self._asked.add(wire.peer)
        self.plan_flush()

    def disconnected(self, wire: _AmqpWire) -> None:
        """Drop a connection that is gone."""
        if self._wires.pop(wire.peer, None) is not None:
            wire.peer.lost(self._now())
            self.plan_flush()
        if not self._wires:
            self._vacant.set()

    def writable(self, wire: _AmqpWire, *, writable: bool) -> None:
        """Note that a client has stopped reading, or reads again."""
        wire.peer.paused = not writable
        if writable:
            wire.peer.resume(self._now())
            self.plan_flush()

    def plan_flush(self) -> None:
        """Send what there is at the end of this turn of the loop: once for a connection, however much.

        The peer that sent a request is answered last. Most of these answers are acknowledgements, which can
        wait, while a receiver waits for a message; and each write takes as long as waking its reader.
        """
        if not self._flush_planned:
            self._flush_planned = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_planned = False
        now = self._now()
        asked, self._asked = self._asked, set()
        for peer in (*(self._broker.take_touched(now) - asked), *asked):
            wire = self._wires.get(peer)
            if wire is not None:
                self._write(wire, now)
        self._arm(now)

    def _write(self, wire: _AmqpWire, now: float) -> None:
        data = wire.peer.connection.data_to_send(now)
        if data or wire.peer.ended:
            wire.send(data, last=wire.peer.ended, latency=self._latency)

    def _arm(self, now: float) -> None:
        deadline = self._broker.next_deadline()
        if deadline is None or self._server is None:
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + max(0.0, deadline - now)
        if self._timer is None or self._timer_at > when:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(when, self._tick)
            self._timer_at = when

    def _tick(self) -> None:
        self._timer = None
        try:
            self._broker.tick(self._now())
        finally:
            self.plan_flush()


async def _peek(connection: socket.socket) -> bytes:
    """Wait for the first byte of a connection and leave it there."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        await readable.wait()
        return connection.recv(1, socket.MSG_PEEK)
    finally:
        loop.remove_reader(connection)


class _Sniffer(asyncio.Protocol):
    """The first bytes inside TLS: AMQP, or else HTTP. Until they come, the connection is a stranger."""

    def __init__(
        self,
        amqp: Callable[[], asyncio.Protocol],
        http: Callable[[], asyncio.Protocol],
        met: Callable[[asyncio.Transport], None],
        parted: Callable[[asyncio.Transport], None],
    ) -> None:
        self._amqp = amqp
        self._http = http
        self._met = met
        self._parted = parted

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._met(self._transport)

    def data_received(self, data: bytes) -> None:
        self._parted(self._transport)
        protocol = self._amqp() if data[:1] == b"A" else self._http()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._parted(self._transport)


class _AmqpWire(asyncio.Protocol):
    """The socket of one AMQP connection. Answers leave in order, after the latency."""

    def __init__(self, server: ServiceBusServer, peer: Peer) -> None:
        self.peer = peer
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._delayed: deque[tuple[bytes, bool]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._server.connected(self)

    def data_received(self, data: bytes) -> None:
        self._server.received(self, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._server.disconnected(self)

    def pause_writing(self) -> None:
        self._server.writable(self, writable=False)
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._server.writable(self, writable=True)
        if self._transport is not None:
            self._transport.resume_reading()

    def send(self, data: bytes, *, last: bool, latency: float) -> None:
        """Send bytes, and then perhaps close."""
        if latency:
            self._delayed.append((data, last))
            asyncio.get_running_loop().call_later(latency, self._send_oldest)
        else:
            self._put(data, last=last)

    def _send_oldest(self) -> None:
        data, last = self._delayed.popleft()
        self._put(data, last=last)

    def _put(self, data: bytes, *, last: bool) -> None:
        if self._transport is None:
            return
        if data:
            self._transport.write(data)
        if last:
            self._transport.close()

    def abort(self) -> None:
        """Cut the connection, by a reset: of a mere end the SDK would leave its socket half open."""
        if self._transport is not None:
            linger = struct.pack("ii", 1, 0)
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._transport.abort()
