"""One server-side AMQP 1.0 connection, sans-IO: bytes in, events out, bytes to send.

::

    header ──► sasl ──► header ──► open ──► OPEN ──close, error, garbage──► CLOSED
      └──────(a peer may leave sasl out)──────┘

Rules:

* The peer opens sessions and links; the server answers. Channels and handles use the peer's numbers in both
  directions. A link waits in ``ATTACHING`` until the handler of the event accepts or refuses it, so an
  attach may be held back.
* To refuse a link it is attached with neither source nor target and then detached: SDKs take any other answer
  for a link that works.
* A transfer needs link credit and room in the peer's session window, frame by frame; what of a long message
  finds no room waits here. Delivery ids count deliveries, transfer ids count frames.
* Frames for a channel or handle that was closed from here are ignored: the peer sent them before it knew.
* Everything that a peer can make grow is bounded: frame size, channels, handles, links, the size of a message
  in parts, the nesting of values. A violation closes the connection with the error that names it.
* A peer is a stranger until the handler sets ``known``. A stranger needs one session and a pair of links to
  say who it is, so it gets few of both.
* What a peer sends costs time in proportion to its bytes. No frame makes the engine walk all links, or all
  deliveries, unless it ends them.

Time comes in with the data (monotonic or wall clock, one of them throughout, in seconds).
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from batchflow.local.amqp import performatives as wire
from batchflow.local.amqp.codec import DecodeError
from batchflow.local.amqp.endpoints import (
    INCOMING_WINDOW,
    OUTGOING_WINDOW,
    AmqpDelivery,
    AmqpSession,
    Closed,
    Event,
    Link,
    LinkAttaching,
    LinkDetached,
    LinkFlow,
    LinkState,
    Opened,
    Parts,
    Settling,
)
from batchflow.local.amqp.performatives import (
    SENDER,
    AmqpError,
    Attach,
    Begin,
    Close,
    Detach,
    Disposition,
    End,
    Flow,
    Open,
    Performative,
    SaslInit,
    Transfer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_FRAME_SIZE = 65_536
MAX_CHANNEL = 4_999
MAX_HANDLE = 255
MAX_LINKS = 5_000
MAX_STRANGER_SESSIONS = 8
MAX_STRANGER_LINKS = 32
IDLE_TIMEOUT = 240.0
MECHANISMS = ("MSSBCBS", "PLAIN", "ANONYMOUS", "EXTERNAL")
"""The mechanisms of SASL, as Azure offers them. PLAIN says who the peer is, by the name and a key of a rule.
The others say nothing: tokens are put to ``$cbs`` afterwards."""
TOLERANCE = 4
"""A message beyond the link's limit is handed on, to be rejected by itself, up to so many times the limit:
a link that is detached tells the SDK less than a rejection does."""
_ID_MASK = 0xFFFF_FFFF
_RECEIVED = (0x23, "amqp:received:list")
"""The state of a delivery that says nothing of its outcome."""


class ConnectionState(Enum):
    """The states of a connection."""

    HEADER = "header"
    SASL = "sasl"
    SECOND_HEADER = "second header"
    OPENING = "opening"
    OPEN = "open"
    CLOSED = "closed"


class Violation(Exception):
    """The peer broke the protocol: the connection ends with this error."""

    def __init__(self, condition: str, description: str) -> None:
        super().__init__(description)
        self.error = AmqpError(condition, description)


class Connection:
    """The state of one connection.

    Call :meth:`receive` with what arrived and act on its events; after that, and after any call that
    answers, send what :meth:`data_to_send` returns. ``CLOSED`` means: send that, then close the socket.

    ``log_in`` tells whether a name and a password, which come by SASL, are right. Without it none are.
    """

    def __init__(
        self, container_id: str, now: float, log_in: Callable[[str, str], bool] = lambda name, password: False
    ) -> None:
        self.state = ConnectionState.HEADER
        self.sessions: dict[int, AmqpSession] = {}
        self.remote_container_id = ""
        self.known = False
        """Whether the peer has said who it is, and so may have more than strangers."""
        self._links = 0
        self._container_id = container_id
        self._log_in = log_in
        self._received = bytearray()
        self._out: list[bytes] = []
        self._events: list[Event] = []
        self._remote_frame_size = 512
        self._heartbeat: float | None = None
        self._last_received = now
        self._last_sent = now
        self._now = now

    # -- bytes ----------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take in what arrived and return what it means."""
        self._now = self._last_received = now
        self._received += data
        try:
            self._read()
        except Violation as violation:
            self.close(violation.error)
        except DecodeError as error:
            self.close(AmqpError("amqp:decode-error", str(error)))
        events, self._events = self._events, []
        return events

    def data_to_send(self, now: float) -> bytes:
        """Take what is to be sent."""
        if not self._out:
            return b""
        self._last_sent = now
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        return data

    def next_deadline(self) -> float:
        """Return the time at which :meth:`tick` is due."""
        silent_until = self._last_received + 2 * IDLE_TIMEOUT
        if self._heartbeat is None:
            return silent_until
        return min(silent_until, self._last_sent + self._heartbeat)

    def tick(self, now: float) -> list[Event]:
        """Send a heartbeat if one is due; give up a peer that has been silent for too long."""
        if self.state is ConnectionState.CLOSED:
            return []
        if now >= self._last_received + 2 * IDLE_TIMEOUT:
            self.close(AmqpError("amqp:resource-limit-exceeded", "nothing was received for too long"))
        elif self._heartbeat is not None and now >= self._last_sent + self._heartbeat:
            self._out.append(wire.EMPTY_FRAME)
            self._last_sent = now
        events, self._events = self._events, []
        return events

    def close(self, error: AmqpError | None = None) -> None:
        """End the connection. What was attached is reported as detached by the next :meth:`receive`."""
        if self.state is ConnectionState.CLOSED:
            return
        if self.state in (ConnectionState.OPEN, ConnectionState.OPENING):
            if self.state is ConnectionState.OPENING:
                self._send_open()
            self._out.append(wire.close(error))
        self._end(error)

    def lost(self) -> list[Event]:
        """End the connection, because its socket is gone."""
        if self.state is not ConnectionState.CLOSED:
            self._end(None)
        events, self._events = self._events, []
        return events

    def _end(self, error: AmqpError | None) -> None:
        self.state = ConnectionState.CLOSED
        self._received.clear()
        for session in list(self.sessions.values()):
            self._drop(session)
        self._events.append(Closed(error))

    # -- frames ---------------------------------------------------------------------------------------

    def _read(self) -> None:
        received = self._received
        pos = 0
        while self.state is not ConnectionState.CLOSED and len(received) - pos >= 8:
            if self.state in (ConnectionState.HEADER, ConnectionState.SECOND_HEADER):
                self._header(bytes(received[pos : pos + 8]))
                pos += 8
                continue
            size = int.from_bytes(received[pos : pos + 4], "big")
            if size < 8 or size > MAX_FRAME_SIZE:
                raise Violation("amqp:connection:framing-error", f"a frame says it has {size} bytes")
            if len(received) - pos < size:
                break
            self._frame(bytes(received[pos : pos + size]))
            pos += size
        if pos:
            del received[:pos]

    def _header(self, header: bytes) -> None:
        if header == wire.SASL_HEADER and self.state is ConnectionState.HEADER:
            self._out += (wire.SASL_HEADER, wire.sasl_mechanisms(MECHANISMS))
            self.state = ConnectionState.SASL
        elif header == wire.AMQP_HEADER:
            self._out.append(wire.AMQP_HEADER)
            self.state = ConnectionState.OPENING
        else:
            self._out.append(wire.AMQP_HEADER)
            self._end(AmqpError("amqp:connection:framing-error", "the peer does not speak AMQP 1.0"))

    def _frame(self, frame: bytes) -> None:
        start = frame[4] * 4
        if start < 8 or start > len(frame):
            raise Violation("amqp:connection:framing-error", "a frame has a data offset that is out of range")
        if frame[5] != (wire.SASL_FRAME if self.state is ConnectionState.SASL else wire.AMQP_FRAME):
            raise Violation("amqp:connection:framing-error", f"a frame of type {frame[5]} has no place here")
        if start == len(frame):
            return
        performative = wire.read_performative(frame[start:])
        if self.state is ConnectionState.OPEN:
            self._dispatch(frame[6] << 8 | frame[7], performative)
        elif self.state is ConnectionState.SASL and isinstance(performative, SaslInit):
            self._sasl(performative)
        elif self.state is ConnectionState.OPENING and isinstance(performative, Open):
            self._open(performative)
        else:
            raise Violation("amqp:illegal-state", f"{type(performative).__name__} has no place here")

    def _sasl(self, init: SaslInit) -> None:
        if init.mechanism not in MECHANISMS:
            self._refuse_sasl(f"the mechanisms are {', '.join(MECHANISMS)}")
        elif init.mechanism == "PLAIN" and not self._plain(init.response):
            self._refuse_sasl("the name of a rule and its key do not fit")
        else:
            self._out.append(wire.sasl_outcome(0))
            self.state = ConnectionState.SECOND_HEADER

    def _refuse_sasl(self, reason: str) -> None:
        self._out.append(wire.sasl_outcome(1))
        self._end(AmqpError("amqp:unauthorized-access", reason))

    def _plain(self, response: bytes) -> bool:
        """Check what a peer says of itself (RFC 4616): whom it acts for, its name, its password."""
        try:
            _, name, password = response.decode().split("\0")
        except ValueError:
            return False
        return self._log_in(name, password)

    def _open(self, open_: Open) -> None:
        if open_.max_frame_size < 512:
            raise Violation("amqp:invalid-field", "the maximum frame size must be at least 512")
        self._remote_frame_size = min(open_.max_frame_size, MAX_FRAME_SIZE)
        if open_.idle_timeout:
            self._heartbeat = max(open_.idle_timeout / 2000, 0.05)
        self.remote_container_id = open_.container_id
        self._send_open()
        self.state = ConnectionState.OPEN
        self._events.append(Opened())

    def _send_open(self) -> None:
        idle_ms = int(IDLE_TIMEOUT * 1000)
        self._out.append(wire.open_(self._container_id, MAX_FRAME_SIZE, MAX_CHANNEL, idle_ms))

    def _dispatch(self, channel: int, performative: Performative) -> None:
        if isinstance(performative, Begin):
            self._begin(channel, performative)
            return
        if isinstance(performative, Close):
            self.close()
            return
        session = self.sessions.get(channel)
        if session is None:
            return
        match performative:
            case Transfer():
                self._transfer(session, performative)
            case Disposition():
                self._disposition(session, performative)
            case Flow():
                self._flow(session, performative)
            case Attach():
                self._attach(session, performative)
            case Detach():
                self._detach(session, performative)
            case End():
                self._drop(session)
                self._out.append(wire.end(channel))
            case _:
                raise Violation("amqp:illegal-state", f"{type(performative).__name__} has no place here")

    # -- sessions -------------------------------------------------------------------------------------

    def _begin(self, channel: int, begin: Begin) -> None:
        if channel > MAX_CHANNEL or channel in self.sessions:
            raise Violation("amqp:not-allowed", f"channel {channel} is in use or above {MAX_CHANNEL}")
        if not self.known and len(self.sessions) >= MAX_STRANGER_SESSIONS:
            raise _too_many(f"{MAX_STRANGER_SESSIONS} sessions are open and no token was put")
        self.sessions[channel] = AmqpSession(channel, begin)
        self._out.append(wire.begin(channel, INCOMING_WINDOW, OUTGOING_WINDOW, MAX_HANDLE))

    def _drop(self, session: AmqpSession) -> None:
        del self.sessions[session.channel]
        self._links -= len(session.links)
        for link in session.links.values():
            self._gone(link)
        session.links.clear()

    def _end_session(self, session: AmqpSession, condition: str, description: str) -> None:
        self._drop(session)
        self._out.append(wire.end(session.channel, AmqpError(condition, description)))

    def _gone(self, link: Link) -> None:
        if link.state is not LinkState.DETACHED:
            link.state = LinkState.DETACHED
            self._events.append(LinkDetached(link))

    # -- links ----------------------------------------------------------------------------------------

    def _attach(self, session: AmqpSession, attach: Attach) -> None:
        old = session.links.get(attach.handle)
        if attach.handle > MAX_HANDLE or (old is not None and old.state is not LinkState.DETACHED):
            self._end_session(
                session,
                "amqp:session:handle-in-use",
                f"handle {attach.handle} is in use or above {MAX_HANDLE}",
            )
            return
        if old is None:
            self._count_link()
        link = session.links[attach.handle] = Link(session, attach, self._now)
        self._events.append(LinkAttaching(link))

    def _count_link(self) -> None:
        if not self.known and self._links >= MAX_STRANGER_LINKS:
            raise _too_many(f"{MAX_STRANGER_LINKS} links are attached and no token was put")
        if self._links >= MAX_LINKS:
            raise _too_many(f"{MAX_LINKS} links are attached")
        self._links += 1

    def _detach(self, session: AmqpSession, detach: Detach) -> None:
        link = session.links.pop(detach.handle, None)
        if link is None:
            return
        self._links -= 1
        if link.state is not LinkState.DETACHED:
            if link.state is LinkState.ATTACHING:
                self._answer(link, b"\x40", b"\x40", 0, None)
            self._out.append(wire.detach(session.channel, link.handle, closed=detach.closed))
            self._forget_unsettled(link)
            self._gone(link)

    def accept(
        self,
        link: Link,
        *,
        source: bytes | None = None,
        target: bytes | None = None,
        max_message_size: int,
        properties: Mapping[str, Any] | None = None,
    ) -> None:
        """Open a link, with the peer's own source and target unless others are given, encoded."""
        link.state = LinkState.ATTACHED
        link.max_message_size = max_message_size
        attach = link.attach
        self._answer(link, source or attach.source, target or attach.target, max_message_size, properties)

    def refuse(self, link: Link, error: AmqpError) -> None:
        """Refuse a link."""
        link.state = LinkState.DETACHED
        self._answer(link, b"\x40", b"\x40", 0, None)
        self._out.append(wire.detach(link.session.channel, link.handle, error))

    def detach(self, link: Link, error: AmqpError) -> None:
        """End a link from here; no event tells of it."""
        if link.state is LinkState.ATTACHING:
            self.refuse(link, error)
        elif link.state is LinkState.ATTACHED:
            link.state = LinkState.DETACHED
            self._forget_unsettled(link)
            self._out.append(wire.detach(link.session.channel, link.handle, error))

    def _answer(
        self, link: Link, source: bytes, target: bytes, size: int, properties: Mapping[str, Any] | None
    ) -> None:
        self._out.append(
            wire.attach(
                link.session.channel,
                link.attach,
                source,
                target,
                max_message_size=size,
                properties=properties,
            )
        )

    @staticmethod
    def _forget_unsettled(link: Link) -> None:
        for delivery_id in link.unsettled:
            del link.session.unsettled[delivery_id]
        link.unsettled.clear()

    # -- flow -----------------------------------------------------------------------------------------

    def _flow(self, session: AmqpSession, flow: Flow) -> None:
        blocked = session.remote_window <= 0 or bool(session.backlog)
        seen = flow.next_incoming_id or 0
        ahead = (session.next_outgoing_id - seen) & _ID_MASK
        session.remote_window = max(0, flow.incoming_window - ahead)
        session.next_incoming_id = flow.next_outgoing_id
        while session.backlog and session.remote_window > 0:
            self._count_out(session)
            self._out.append(session.backlog.popleft())
        if flow.handle is None:
            # Links that had room before have sent what there was.
            links = [link for link in session.links.values() if link.sends] if blocked else []
        else:
            links = self._link_flow(session, flow, flow.handle)
        self._events += [LinkFlow(link) for link in links if link.credit > 0 or link.drain]
        if flow.echo and not any(link.drain for link in links):
            self._send_flow(session, links[0] if len(links) == 1 else None)

    def _link_flow(self, session: AmqpSession, flow: Flow, handle: int) -> list[Link]:
        link = session.links.get(handle)
        if link is None or not link.sends or link.state is LinkState.DETACHED:
            return []
        link.last_used = self._now
        peer_count = flow.delivery_count or 0
        credit = (flow.link_credit or 0) - ((link.delivery_count - peer_count) & _ID_MASK)
        link.credit = max(0, credit)
        link.drain = flow.drain
        return [link]

    def _send_flow(self, session: AmqpSession, link: Link | None, *, drain: bool = False) -> None:
        about = None if link is None else (link.handle, link.delivery_count, link.credit, drain)
        self._out.append(wire.flow(session.channel, session.windows(), about))

    def drained(self, link: Link) -> None:
        """Use up the remaining credit and tell the peer, because everything has been sent.

        While the link's attach is not answered this waits, and so does the credit that came with it.
        """
        if link.state is not LinkState.ATTACHED:
            return
        link.delivery_count = (link.delivery_count + link.credit) & _ID_MASK
        link.credit = 0
        link.drain = False
        self._send_flow(link.session, link, drain=True)

    def grant(self, link: Link, credit: int) -> None:
        """Let the peer send that many messages."""
        link.credit = credit
        self._send_flow(link.session, link)

    # -- messages in ----------------------------------------------------------------------------------

    def _transfer(self, session: AmqpSession, transfer: Transfer) -> None:
        session.next_incoming_id = (session.next_incoming_id + 1) & _ID_MASK
        session.incoming_window -= 1
        if session.incoming_window < INCOMING_WINDOW // 2:
            session.incoming_window = INCOMING_WINDOW
            self._send_flow(session, None)
        link = session.links.get(transfer.handle)
        if link is None:
            self._end_session(session, "amqp:session:unattached-handle", "a transfer names no attached link")
        elif link.state is LinkState.ATTACHED:
            self._take(link, transfer)

    def _take(self, link: Link, transfer: Transfer) -> None:
        link.last_used = self._now
        parts = link.parts
        if parts is None:
            if link.sends or transfer.delivery_id is None:
                raise Violation("amqp:not-allowed", "a transfer came on the wrong link, or without an id")
            if not transfer.more and not transfer.aborted:
                self._arrived(
                    link,
                    transfer.delivery_id,
                    transfer.message_format or 0,
                    transfer.settled,
                    transfer.payload,
                )
                return
            parts = link.parts = Parts(transfer)
        else:
            parts.payload += transfer.payload
            parts.settled = parts.settled or transfer.settled
        self._continue(link, parts, transfer)

    def _continue(self, link: Link, parts: Parts, transfer: Transfer) -> None:
        if transfer.aborted:
            link.parts = None
        elif len(parts.payload) > TOLERANCE * link.max_message_size:
            link.parts = None
            self._too_large(link)
        elif not transfer.more:
            link.parts = None
            self._arrived(link, parts.delivery_id, parts.message_format, parts.settled, bytes(parts.payload))

    def _arrived(
        self, link: Link, delivery_id: int, message_format: int, settled: bool, payload: bytes
    ) -> None:
        if link.credit <= 0:
            self._overrun(link)
            return
        link.delivery_count = (link.delivery_count + 1) & _ID_MASK
        link.credit -= 1
        self._events.append(AmqpDelivery(link, delivery_id, message_format, settled, payload))

    def _overrun(self, link: Link) -> None:
        self._events.append(LinkDetached(link))
        self.detach(
            link, AmqpError("amqp:link:transfer-limit-exceeded", "a message was sent without link credit")
        )

    def _too_large(self, link: Link) -> None:
        self._events.append(LinkDetached(link))
        self.detach(
            link,
            AmqpError(
                "amqp:link:message-size-exceeded",
                f"The received message is larger than the maximum of {link.max_message_size} bytes.",
            ),
        )

    # -- messages out ---------------------------------------------------------------------------------

    def send(self, link: Link, tag: bytes, payload: bytes, *, settled: bool) -> None:
        """Send a message on a link that is ``sendable``; what finds no room in the window follows later."""
        session = link.session
        delivery_id = session.next_delivery_id
        session.next_delivery_id = (delivery_id + 1) & _ID_MASK
        link.delivery_count = (link.delivery_count + 1) & _ID_MASK
        link.credit -= 1
        link.last_used = self._now
        if not settled:
            session.unsettled[delivery_id] = (link, tag)
            link.unsettled.add(delivery_id)
        room = self._remote_frame_size - wire.TRANSFER_OVERHEAD
        for start in range(0, len(payload) or 1, room):
            part = payload[start : start + room] if len(payload) > room else payload
            more = start + room < len(payload)
            self._put(
                session,
                wire.transfer(
                    session.channel, link.handle, delivery_id, tag, part, settled=settled, more=more
                ),
            )

    def _put(self, session: AmqpSession, frame: bytes) -> None:
        if session.backlog or session.remote_window <= 0:
            session.backlog.append(frame)
            return
        self._count_out(session)
        self._out.append(frame)

    @staticmethod
    def _count_out(session: AmqpSession) -> None:
        session.next_outgoing_id = (session.next_outgoing_id + 1) & _ID_MASK
        session.remote_window -= 1

    # -- settlement -----------------------------------------------------------------------------------

    def _disposition(self, session: AmqpSession, disposition: Disposition) -> None:
        state = disposition.state
        undecided = state is None or state.descriptor in _RECEIVED
        if disposition.role is SENDER or (undecided and not disposition.settled):
            return
        for delivery_id in self._named(session, disposition):
            link, tag = session.unsettled[delivery_id]
            if disposition.settled:
                self._settled(session, delivery_id)
            link.last_used = self._now
            self._events.append(Settling(link, delivery_id, tag, disposition.settled, state))

    @staticmethod
    def _settled(session: AmqpSession, delivery_id: int) -> None:
        """Forget a delivery that is settled."""
        entry = session.unsettled.pop(delivery_id, None)
        if entry is not None:
            entry[0].unsettled.discard(delivery_id)

    @staticmethod
    def _named(session: AmqpSession, disposition: Disposition) -> list[int]:
        """Return the deliveries from first to last, found without walking a range that the peer made up."""
        first, last, unsettled = disposition.first, disposition.last, session.unsettled
        if first == last:
            return [first] if first in unsettled else []
        if last - first < len(unsettled):
            return [id_ for id_ in range(first, last + 1) if id_ in unsettled]
        return [id_ for id_ in unsettled if first <= id_ <= last]

    def settle(self, link: Link, delivery_id: int, state: bytes) -> None:
        """Settle a delivery, in either direction, with an encoded state."""
        session = link.session
        if session.channel not in self.sessions:
            return
        if link.sends:
            self._settled(session, delivery_id)
        self._out.append(wire.disposition(session.channel, not link.sends, delivery_id, state))


def _too_many(what: str) -> Violation:
    return Violation("amqp:resource-limit-exceeded", f"{what}: that is the most that a connection may have")
