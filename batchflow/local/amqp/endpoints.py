"""What a connection is made of, its sessions and links, and the events that it reports."""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from batchflow.local.amqp.performatives import RECEIVER

if TYPE_CHECKING:
    from batchflow.local.amqp.codec import Described
    from batchflow.local.amqp.performatives import AmqpError, Attach, Begin, Transfer

INCOMING_WINDOW = 5_000
OUTGOING_WINDOW = 0x7FFF_FFFF


class LinkState(Enum):
    """The states of a link. In DETACHED the peer's detach may still be under way."""

    ATTACHING = "attaching"
    ATTACHED = "attached"
    DETACHED = "detached"


class AmqpSession:
    """One channel of a connection."""

    __slots__ = (
        "backlog",
        "channel",
        "incoming_window",
        "links",
        "next_delivery_id",
        "next_incoming_id",
        "next_outgoing_id",
        "remote_window",
        "unsettled",
    )

    def __init__(self, channel: int, begin: Begin) -> None:
        self.channel = channel
        self.links: dict[int, Link] = {}
        self.next_incoming_id = begin.next_outgoing_id
        self.incoming_window = INCOMING_WINDOW
        self.next_outgoing_id = 0
        self.remote_window = begin.incoming_window
        self.next_delivery_id = 0
        self.unsettled: dict[int, tuple[Link, bytes]] = {}
        self.backlog: deque[bytes] = deque()

    def windows(self) -> tuple[int, int, int, int]:
        """Return the session fields of a flow frame."""
        return self.next_incoming_id, self.incoming_window, self.next_outgoing_id, OUTGOING_WINDOW


class Link:
    """One link. The server sends on it when the peer's role is receiver.

    ``node`` belongs to the handler of the events.
    """

    __slots__ = (
        "attach",
        "credit",
        "delivery_count",
        "drain",
        "handle",
        "last_used",
        "max_message_size",
        "node",
        "parts",
        "session",
        "state",
        "unsettled",
    )

    def __init__(self, session: AmqpSession, attach: Attach, now: float) -> None:
        self.session = session
        self.attach = attach
        self.handle = attach.handle
        self.state = LinkState.ATTACHING
        self.credit = 0
        self.delivery_count = 0
        self.drain = False
        self.parts: Parts | None = None
        self.max_message_size = 0
        self.last_used = now
        self.unsettled: set[int] = set()
        self.node: Any = None

    @property
    def sends(self) -> bool:
        """Whether the server is the sender."""
        return self.attach.role is RECEIVER

    @property
    def sendable(self) -> bool:
        """Whether a message handed over now would leave at once."""
        session = self.session
        return (
            self.credit > 0
            and self.state is LinkState.ATTACHED
            and session.remote_window > 0
            and not session.backlog
        )


class Parts:
    """A message that is coming in over several frames."""

    __slots__ = ("delivery_id", "message_format", "payload", "settled")

    def __init__(self, first: Transfer) -> None:
        self.delivery_id = first.delivery_id or 0
        self.message_format = first.message_format or 0
        self.settled = first.settled
        self.payload = bytearray(first.payload)


class Opened(NamedTuple):
    """The connection is open."""


class LinkAttaching(NamedTuple):
    """The peer wants a link: accept or refuse it."""

    link: Link


class LinkDetached(NamedTuple):
    """A link has ended, by the peer or with its session."""

    link: Link


class LinkFlow(NamedTuple):
    """More can perhaps be sent on a link; with ``link.drain``, call ``drained`` after sending."""

    link: Link


class AmqpDelivery(NamedTuple):
    """A message has come in; unless it is settled, answer with ``settle``."""

    link: Link
    delivery_id: int
    message_format: int
    settled: bool
    payload: bytes


class Settling(NamedTuple):
    """The peer says what became of a delivery; unless it is settled, answer with ``settle``.

    ``state`` is None when the peer forgot the delivery without an outcome."""

    link: Link
    delivery_id: int
    tag: bytes
    settled: bool
    state: Described | None


class Closed(NamedTuple):
    """The connection has ended. ``error`` is why, if it ended from here."""

    error: AmqpError | None


Event = Opened | LinkAttaching | LinkDetached | LinkFlow | AmqpDelivery | Settling | Closed
