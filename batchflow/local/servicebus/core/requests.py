"""Request-response nodes of a connection, ``$cbs`` and ``{queue}/$management`` (sans-IO).

A client sends requests on one link and takes the replies on another. A reply goes to the reply link of the
same connection and node that the request names in ``reply-to``, or the latest one when it names none.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from batchflow.local.amqp import performatives as wire
from batchflow.local.amqp.codec import DecodeError, Int
from batchflow.local.amqp.message import read_request, write_reply
from batchflow.local.amqp.performatives import AmqpError, Terminus
from batchflow.local.security.sas import TokenRefused, path_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batchflow.local.amqp.endpoints import AmqpDelivery, Link
    from batchflow.local.amqp.engine import Connection
    from batchflow.local.amqp.message import AmqpRequest
    from batchflow.local.security.sas import SasGrant

CREDIT = 100
MAX_REQUEST_SIZE = 1 << 20
MAX_TOKEN_SIZE = 16_384
"""Bytes of a request of a stranger, who is to put a token; four times that ends the link."""
_MAX_WAITING = 1_000
_MAX_ID_SIZE = 1_024
"""Bytes of an encoded message id, which is echoed; an id has 128 characters at most."""
_ADDRESS = 0


class Reply(NamedTuple):
    """The application properties and the body of a reply."""

    properties: Mapping[str, Any]
    body: Any = None


class ReplyLink:
    """A link on which a client takes replies; they wait while it gives no credit."""

    __slots__ = ("address", "connection", "link", "next_tag", "path", "waiting")

    def __init__(self, connection: Connection, link: Link, path: str) -> None:
        self.connection = connection
        self.link = link
        self.path = path
        target = Terminus.read(link.attach.target)
        self.address = target.field(_ADDRESS) if target else None
        self.waiting: deque[bytes] = deque(maxlen=_MAX_WAITING)
        self.next_tag = 0

    def open(self) -> None:
        """Answer the attach."""
        self.connection.accept(self.link, max_message_size=MAX_REQUEST_SIZE)

    def put(self, reply: bytes) -> None:
        """Send a reply, or keep it until there is credit."""
        self.waiting.append(reply)
        self.flow()

    def flow(self) -> None:
        """Send what waits, as far as there is credit."""
        while self.waiting and self.link.sendable:
            self.next_tag += 1
            self.connection.send(
                self.link, self.next_tag.to_bytes(8, "big"), self.waiting.popleft(), settled=True
            )
        if self.link.drain:
            self.connection.drained(self.link)


class RequestLink:
    """A link on which a client sends requests, each of which ``answer`` answers."""

    __slots__ = ("answer", "connection", "link", "path", "replies")

    def __init__(
        self,
        connection: Connection,
        link: Link,
        path: str,
        replies: Mapping[Link, ReplyLink],
        answer: Callable[[AmqpRequest, float], Reply],
    ) -> None:
        self.connection = connection
        self.link = link
        self.path = path
        self.replies = replies
        self.answer = answer

    def open(self) -> None:
        """Answer the attach and let the client send."""
        size = MAX_REQUEST_SIZE if self.connection.known else MAX_TOKEN_SIZE
        self.connection.accept(self.link, max_message_size=size)
        self.connection.grant(self.link, CREDIT)

    def delivery(self, event: AmqpDelivery, now: float) -> None:
        """Answer a request."""
        outcome = wire.ACCEPTED
        try:
            request = read_request(event.payload)
            if len(request.message_id) > _MAX_ID_SIZE:
                raise DecodeError("a message id is too long")
        except DecodeError as error:
            outcome = wire.rejected(AmqpError("amqp:decode-error", str(error)))
        else:
            properties, body = self.answer(request, now)
            self._reply(request, write_reply(request.message_id, properties, body))
        if not event.settled:
            self.connection.settle(self.link, event.delivery_id, outcome)
        if self.link.credit < CREDIT // 2:
            self.connection.grant(self.link, CREDIT)

    def _reply(self, request: AmqpRequest, reply: bytes) -> None:
        candidates = [link for link in self.replies.values() if link.path == self.path]
        named = [link for link in candidates if link.address == request.reply_to]
        for link in (named or candidates)[-1:]:
            link.put(reply)


def put_token(
    request: AmqpRequest, authenticate: Callable[[str, str, float], SasGrant], now: float
) -> tuple[Reply, SasGrant | None]:
    """Answer a request to ``$cbs``: a valid token that covers the name it is put for becomes a grant."""
    if request.properties.get("operation") != "put-token":
        return _told(501, "Only put-token is part of the local Service Bus."), None
    name = request.properties.get("name")
    if not isinstance(name, str) or not isinstance(request.body, str):
        return _told(400, "A put-token needs the name of a resource and a token as a string."), None
    try:
        grant = authenticate(request.body, path_of(name), now)
    except TokenRefused as refused:
        return _told(401, f"InvalidToken: {refused}"), None
    if not grant.covers(path_of(name)):
        return _told(401, "InvalidToken: the token does not cover the resource that it was put for"), None
    return _told(202, "Accepted"), grant


def _told(status: int, description: str) -> Reply:
    return Reply({"status-code": Int(status), "status-description": description})
