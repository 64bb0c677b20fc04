"""The local Service Bus without its sockets: connections, nodes, rights and timers (sans-IO).

Bytes of a connection go in through :meth:`Peer.receive`; after that, and after :meth:`BrokerCore.tick`, each
peer in :meth:`BrokerCore.take_touched` has bytes to send, or has ended. The clock is passed in: seconds
since the epoch, never going back.

Rules:

* A link to a queue needs a token, put to ``$cbs`` on the same connection before, that covers it and grants
  the right; when the last such token expires the link is detached. Each request to ``$management`` needs its
  own right.
* A link without traffic is detached after ``link_idle_timeout``; a connection without links to a queue, and
  without requests, is closed after half of it. The links of ``$cbs`` and ``$management`` may stay quiet.
* What is not part of the local Service Bus (topics, transactions, forwarding) is refused as not implemented.
"""

from __future__ import annotations

import heapq
import itertools
import math
from typing import TYPE_CHECKING, TypeAlias

from batchflow.local.amqp import performatives as wire
from batchflow.local.amqp.codec import DecodeError
from batchflow.local.amqp.endpoints import (
    AmqpDelivery,
    Closed,
    Event,
    Link,
    LinkAttaching,
    LinkDetached,
    LinkFlow,
    LinkState,
    Settling,
)
from batchflow.local.amqp.engine import Connection, ConnectionState
from batchflow.local.amqp.performatives import AmqpError, Terminus
from batchflow.local.security.sas import Rights, SasGrant, path_of
from batchflow.local.servicebus.core import management
from batchflow.local.servicebus.core.links import Inlet, Outlet, QueueNode
from batchflow.local.servicebus.core.namespace import DEAD_LETTER_SUFFIX, Namespace, main_path
from batchflow.local.servicebus.core.requests import Reply, ReplyLink, RequestLink, put_token

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchflow.local.amqp.message import AmqpRequest
    from batchflow.local.servicebus.core.namespace import Entity, QueueSettings

Answer: TypeAlias = "Callable[[AmqpRequest, float], Reply]"

CBS = "$cbs"
MANAGEMENT_SUFFIX = "/$management"
MAX_GRANTS = 1_000
_ADDRESS = 0
_COORDINATOR = (0x30, "amqp:coordinator:list")
BUSY = AmqpError(
    "com.microsoft:server-busy",
    "The request was terminated because the entity is being throttled. Error code : 50009. "
    "Please wait 2 seconds and try again.",
)


class Peer:
    """One connection and the rights that were put on it."""

    def __init__(self, broker: BrokerCore, connection: Connection, now: float) -> None:
        self.broker = broker
        self.connection = connection
        self.paused = False
        self.armed_at = math.inf
        self._grants: dict[str, SasGrant] = {}
        self._replies: list[ReplyLink] = []
        self._links: set[Link] = set()
        self._last_used = now

    @property
    def ended(self) -> bool:
        """Whether the connection is to be closed once what is left has been sent."""
        return self.connection.state is ConnectionState.CLOSED

    @property
    def held(self) -> bool:
        """Whether messages must wait: the client does not read, or the namespace is throttled."""
        return self.paused or self.broker.busy

    def touch(self) -> None:
        """Note that there is something to send."""
        self.broker.touched.add(self)

    # -- events ---------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> None:
        """Take in what arrived."""
        self._handle(self.connection.receive(data, now), now)
        self.touch()

    def lost(self, now: float) -> None:
        """Free what the links hold, because the socket is gone."""
        self._handle(self.connection.lost(), now)

    def close(self, error: AmqpError, now: float) -> None:
        """End the connection from here."""
        self.connection.close(error)
        self._handle(self.connection.lost(), now)
        self.touch()

    def resume(self, now: float) -> None:
        """Send what has waited, because the client reads again or is no longer throttled."""
        for link in list(self._links):
            if isinstance(link.node, Outlet) and link.state is LinkState.ATTACHED:
                link.node.flow(now)
        self.touch()

    def _handle(self, events: list[Event], now: float) -> None:
        for event in events:
            match event:
                case Settling(link):
                    link.node.settling(event, now)
                    self.broker.stir(link.node.node)
                case AmqpDelivery(link):
                    self._delivery(event, now)
                case LinkFlow(link):
                    self._flow(link, now)
                case LinkAttaching(link):
                    self._attach(link, now)
                case LinkDetached(link):
                    self._detached(link, now)
                case Closed():
                    self.broker.forget(self)
                case _:
                    self.broker.arm(self)

    def _delivery(self, event: AmqpDelivery, now: float) -> None:
        handler = event.link.node
        self._last_used = now
        if isinstance(handler, Inlet):
            if self.broker.busy:
                handler.answer(event, wire.rejected(BUSY))
                return
            handler.node.entity.accessed_at = now
            handler.delivery(event, now)
            self.broker.stir(handler.node)
        else:
            handler.delivery(event, now)

    def _flow(self, link: Link, now: float) -> None:
        handler = link.node
        if isinstance(handler, Outlet):
            handler.node.entity.accessed_at = now
            handler.flow(now)
            self.broker.stir(handler.node)
        elif isinstance(handler, ReplyLink):
            handler.flow()

    def _detached(self, link: Link, now: float) -> None:
        self._links.discard(link)
        self._last_used = now
        match link.node:
            case Outlet() as outlet:
                outlet.node.leave(outlet, now)
                self.broker.stir(outlet.node)
            case ReplyLink() as reply:
                self._replies.remove(reply)

    # -- attaching ------------------------------------------------------------------------------------

    def _attach(self, link: Link, now: float) -> None:
        try:
            terminus = Terminus.read(link.attach.source if link.sends else link.attach.target)
            if terminus is None:
                raise DecodeError("a link has no source or no target")
            error = self._open(link, terminus, now)
        except DecodeError as fault:
            error = AmqpError("amqp:invalid-field", str(fault))
        if error is not None:
            link.node = None
            self.connection.refuse(link, error)
        elif link.state is not LinkState.DETACHED:
            self._links.add(link)
            self.broker.arm(self)

    def _open(self, link: Link, terminus: Terminus, now: float) -> AmqpError | None:
        """Open the link, or say why not."""
        if terminus.kind in _COORDINATOR:
            return _not_implemented("Transactions are")
        address = terminus.field(_ADDRESS)
        if not isinstance(address, str):
            return AmqpError("amqp:invalid-field", "A link needs an address that is a string.")
        path = path_of(address)
        if path == CBS:
            self._open_request_response(link, path, self._put_token)
            return None
        if self.broker.busy:
            return BUSY
        if path.endswith(MANAGEMENT_SUFFIX):
            return self._open_management(link, path, now)
        return self._open_queue(link, path, now)

    def _open_request_response(self, link: Link, path: str, answer: Answer) -> None:
        if link.sends:
            link.node = ReplyLink(self.connection, link, path)
            self._replies.append(link.node)
        else:
            link.node = RequestLink(self.connection, link, path, self._replies, answer)
        link.node.open()

    def _open_management(self, link: Link, path: str, now: float) -> AmqpError | None:
        target = path.removesuffix(MANAGEMENT_SUFFIX)
        if not self.rights(target, now):
            return _unauthorized("Listen or Send", target)
        node = self.broker.node(target)
        if node is None:
            return _missing(target)

        def answer(request: AmqpRequest, when: float) -> Reply:
            return self._manage(request, target, when)

        self._open_request_response(link, path, answer)
        return None

    def _open_queue(self, link: Link, path: str, now: float) -> AmqpError | None:
        if "/subscriptions/" in path:
            return _not_implemented("Topics and subscriptions are")
        right = Rights.LISTEN if link.sends else Rights.SEND
        if right not in self.rights(path, now):
            return _unauthorized("Listen" if link.sends else "Send", path)
        node = self.broker.node(path)
        if node is None:
            return _missing(path)
        node.entity.accessed_at = now
        if link.sends:
            link.node = Outlet(self, link, node)
            link.node.open(now)
            self.broker.stir(node)
        elif node.queue.dead_letters is None:
            return AmqpError("amqp:not-allowed", "Nothing can be sent to a dead-letter queue.")
        else:
            link.node = Inlet(self.connection, link, node)
            link.node.open()
        return None

    # -- rights ---------------------------------------------------------------------------------------

    def rights(self, path: str, now: float) -> Rights:
        """Return what the tokens put on this connection permit at a path."""
        rights = Rights.NONE
        for grant in self._grants.values():
            if grant.expires_at > now and grant.covers(path):
                rights |= grant.rights
        return rights

    def expire_tokens(self, now: float) -> None:
        """Revoke the tokens that were put so far."""
        self._grants.clear()
        self.tick(now)

    def _put_token(self, request: AmqpRequest, now: float) -> Reply:
        reply, grant = put_token(request, self.broker.namespace.authenticate, now)
        if grant is not None:
            self._grants[grant.path] = grant
            while len(self._grants) > MAX_GRANTS:
                del self._grants[next(iter(self._grants))]
            self.broker.arm(self)
        return reply

    def _manage(self, request: AmqpRequest, target: str, now: float) -> Reply:
        if self.broker.busy:
            return management.busy(BUSY.description)
        node = self.broker.node(target)
        if node is None:
            return management.missing(f"The messaging entity '{target}' could not be found.")
        node.entity.accessed_at = now
        reply = management.answer(request, node, self.connection, self.rights(target, now), now)
        self.broker.stir(node)
        return reply

    # -- time -----------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """Return the time at which :meth:`tick` is due."""
        if self.ended:
            return math.inf
        idle = self.broker.link_idle_timeout
        quiet = min((link.last_used for link in self._queue_links()), default=None)
        rest = self._last_used + idle / 2 if quiet is None else quiet + idle
        expiry = min((grant.expires_at for grant in self._grants.values()), default=math.inf)
        return min(self.connection.next_deadline(), rest, expiry)

    def tick(self, now: float) -> None:
        """Do what has come due: heartbeats, and the ends of what is idle or no longer permitted."""
        self._handle(self.connection.tick(now), now)
        self._grants = {path: grant for path, grant in self._grants.items() if grant.expires_at > now}
        idle = self.broker.link_idle_timeout
        for link in self._queue_links():
            if link.last_used + idle <= now:
                self.expel(link, _idle(idle), now)
            elif not self._permitted(link, now):
                self.expel(link, AmqpError("amqp:unauthorized-access", "ExpiredToken: put a new one."), now)
        if not self.ended and not self._queue_links() and self._last_used + idle / 2 <= now:
            self.close(AmqpError("amqp:connection:forced", "The connection had no links for too long."), now)
        self.touch()

    def _queue_links(self) -> list[Link]:
        return [link for link in self._links if isinstance(link.node, Inlet | Outlet)]

    def _permitted(self, link: Link, now: float) -> bool:
        node: QueueNode = link.node.node
        right = Rights.LISTEN if link.sends else Rights.SEND
        return right in self.rights(node.path, now)

    def expel(self, link: Link, error: AmqpError, now: float) -> None:
        """End a link from here, and free what it holds."""
        self.connection.detach(link, error)
        self._detached(link, now)
        self.touch()

    def queue_deleted(self, entity: Entity, now: float) -> None:
        """End all links to a queue."""
        for link in self._queue_links():
            if link.node.node.entity is entity:
                self.expel(link, _missing(entity.name), now)


class BrokerCore:
    """A namespace and all who are connected to it."""

    def __init__(self, namespace: Namespace, *, link_idle_timeout: float) -> None:
        self.namespace = namespace
        self.link_idle_timeout = link_idle_timeout
        self.touched: set[Peer] = set()
        self.peers: set[Peer] = set()
        self.busy = False
        self._busy_until = 0.0
        self._nodes: dict[str, QueueNode] = {}
        self._stirred: set[QueueNode] = set()
        self._timers: list[tuple[float, int, Peer | QueueNode | None]] = []
        self._ticks = itertools.count()

    # -- connections ----------------------------------------------------------------------------------

    def connect(self, now: float) -> Peer:
        """Add the connection of a client."""
        peer = Peer(self, Connection("batchflow-servicebus", now), now)
        self.peers.add(peer)
        self.arm(peer)
        return peer

    def forget(self, peer: Peer) -> None:
        """Remove a connection that has ended."""
        self.peers.discard(peer)

    def take_touched(self, now: float) -> set[Peer]:
        """Return the peers that may have something to send, since last asked."""
        for node in self._stirred:
            self._follow_up(node, now)
        self._stirred.clear()
        touched, self.touched = self.touched, set()
        return touched

    def throttle(self, seconds: float, now: float) -> None:
        """Answer every request with server-busy, and hold messages back, for a while."""
        self.busy = True
        self._busy_until = now + seconds
        heapq.heappush(self._timers, (self._busy_until, next(self._ticks), None))

    def expire_tokens(self, now: float) -> None:
        """Let the tokens of all connections expire."""
        for peer in list(self.peers):
            peer.expire_tokens(now)

    # -- queues ---------------------------------------------------------------------------------------

    def node(self, path: str) -> QueueNode | None:
        """Return the node at a path, in lower case: a queue or a dead-letter queue."""
        node = self._nodes.get(path)
        if node is None:
            name, dead = main_path(path)
            entity = self.namespace.find(name)
            queue = entity.queue.dead_letters if entity and dead else entity.queue if entity else None
            if entity is None or queue is None:
                return None
            node = self._nodes[path] = QueueNode(path, entity, queue, self._new_id)
        return node

    def _new_id(self) -> str:
        return self.namespace.new_token().hex()

    def create_queue(self, name: str, settings: QueueSettings, now: float) -> Entity:
        """Create a queue. Raises :class:`~.namespace.AdministrationRefused`."""
        entity = self.namespace.create(name, settings, now)
        node = self.node(name.lower())
        if node is not None:
            self.stir(node)
        return entity

    def update_queue(self, name: str, settings: QueueSettings, now: float) -> Entity:
        """Change a queue. Raises :class:`~.namespace.AdministrationRefused`."""
        entity = self.namespace.update(name, settings, now)
        node = self.node(name.lower())
        if node is not None:
            self.stir(node)
        return entity

    def delete_queue(self, name: str, now: float) -> None:
        """Delete a queue and end the links to it. Raises
        :class:`~.namespace.AdministrationRefused`."""
        entity = self.namespace.delete(name)
        for path in [path for path, node in self._nodes.items() if node.entity is entity]:
            self._nodes.pop(path).retired = True
        for peer in list(self.peers):
            peer.queue_deleted(entity, now)

    # -- time -----------------------------------------------------------------------------------------

    def stir(self, node: QueueNode) -> None:
        """Note that a queue was touched: its next deadline may be earlier."""
        self._stirred.add(node)

    def _follow_up(self, node: QueueNode, now: float) -> None:
        """Send on what a queue has dead-lettered after it was touched, and look at its deadlines again."""
        dead = self._nodes.get(node.entity.name.lower() + DEAD_LETTER_SUFFIX)
        if dead is not None and dead is not node and dead.outlets:
            dead.pump(now)
            self.arm(dead)
        self.arm(node)

    def arm(self, thing: Peer | QueueNode) -> None:
        """Note when something is due next; a deadline that has moved away is found out when it comes."""
        deadline = thing.next_deadline()
        if deadline < thing.armed_at:
            thing.armed_at = deadline
            heapq.heappush(self._timers, (deadline, next(self._ticks), thing))

    def next_deadline(self) -> float | None:
        """Return when :meth:`tick` is due, as far as is known after :meth:`take_touched`."""
        return self._timers[0][0] if self._timers else None

    def tick(self, now: float) -> None:
        """Do what has come due."""
        if self.busy and now >= self._busy_until:
            self.busy = False
            for peer in list(self.peers):
                peer.resume(now)
        for thing in self._due(now):
            thing.tick(now)
            if isinstance(thing, QueueNode):
                self._tidy(thing, now)
            self.arm(thing)

    def _due(self, now: float) -> list[Peer | QueueNode]:
        """Take out what is due, each thing once, however often it is noted."""
        due: list[Peer | QueueNode] = []
        timers = self._timers
        while timers and timers[0][0] <= now:
            deadline, _, thing = heapq.heappop(timers)
            if thing is not None and deadline == thing.armed_at:
                thing.armed_at = math.inf
                due.append(thing)
        return due

    def _tidy(self, node: QueueNode, now: float) -> None:
        """Delete a queue that was made to go when it is idle for long."""
        self.stir(node)
        entity = node.entity
        if entity.idle_deadline <= now and not node.retired:
            if any(other.entity is entity and not other.idle for other in self._nodes.values()):
                entity.accessed_at = now
            else:
                self.delete_queue(entity.name, now)


def _not_implemented(what: str) -> AmqpError:
    return AmqpError("amqp:not-implemented", f"{what} not part of the local Service Bus.")


def _unauthorized(claim: str, path: str) -> AmqpError:
    return AmqpError(
        "amqp:unauthorized-access",
        f"Unauthorized access. '{claim}' claim(s) are required for this operation. Resource: '{path}'.",
    )


def _missing(path: str) -> AmqpError:
    return AmqpError("amqp:not-found", f"The messaging entity '{path}' could not be found.")


def _idle(timeout: float) -> AmqpError:
    return AmqpError(
        "amqp:link:detach-forced", f"The link was idle for {timeout:g} s. IdleTimerExpired: Idle timeout."
    )
