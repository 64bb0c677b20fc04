"""The local Service Bus without its sockets: connections, nodes, rights and timers (sans-IO).

Bytes of a connection go in through :meth:`Peer.receive`; after that, and after :meth:`BrokerCore.tick`, each
peer in :meth:`BrokerCore.take_touched` has bytes to send, or has ended. The clock is passed in: seconds
since the epoch, never going back.

Rules:

* A link to a queue needs a token, put to ``$cbs`` on the same connection before, that covers it and grants
  the right; when the last such token expires the link is detached. Each request to ``$management`` needs its
  own right.
* A connection that has neither put a valid token nor logged in by SASL is a stranger. It may attach to
  ``$cbs`` alone, has :data:`STRANGER_TIMEOUT` seconds, and few sessions and links.
  (https://learn.microsoft.com/azure/service-bus-messaging/service-bus-amqp-protocol-guide)
* A link without traffic is detached after ``link_idle_timeout``; a connection without links to a queue, and
  without requests, is closed after half of it. The links of ``$cbs`` and ``$management`` may stay quiet.
* What is not part of the local Service Bus (topics, transactions, forwarding) is refused as not implemented.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict
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
from batchflow.local.security.sas import Rights, SasGrant, parts_of, path_of
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
STRANGER_TIMEOUT = 20.0
"""Seconds after which the connection of a stranger is closed, as on Azure."""
_PAUSE = 1.0
"""Seconds after which a queue whose clock failed is looked at again."""
_MAX_PATH = 512
"""Characters of a path at which there can be a queue, with what Service Bus appends to its name."""
_ADDRESS = 0
_COORDINATOR = (0x30, "amqp:coordinator:list")
BUSY = AmqpError(
    "com.microsoft:server-busy",
    "The request was terminated because the entity is being throttled. Error code : 50009. "
    "Please wait 2 seconds and try again.",
)


class Peer:
    """One connection and the rights that were put on it."""

    def __init__(self, broker: BrokerCore, now: float) -> None:
        self.broker = broker
        self.connection = Connection("batchflow-servicebus", now, self._log_in)
        self.paused = False
        self.armed_at = math.inf
        self._grants: OrderedDict[str, SasGrant] = OrderedDict()
        self._replies: dict[Link, ReplyLink] = {}
        self._links: set[Link] = set()
        """Those to queues."""
        self._stranger_until = now + STRANGER_TIMEOUT
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
        """Take in what arrived. What fails in the broker itself ends this connection and no other."""
        try:
            self._handle(self.connection.receive(data, now), now)
        except Exception:
            self.fail(now)
        self.touch()

    def lost(self, now: float) -> None:
        """Free what the links hold, because the socket is gone."""
        try:
            self._handle(self.connection.lost(), now)
        except Exception:
            self.fail(now)

    def fail(self, now: float) -> None:
        """Note the exception that is being handled, and end the connection because of it."""
        self.broker.on_error("the AMQP connection of a client")
        self.connection.close(_INTERNAL)
        self.connection.lost()
        for link in list(self._links):
            try:
                self._detached(link, now)
            except Exception:
                self.broker.on_error("the end of an AMQP link")
        self.broker.forget(self)
        self.touch()

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
                    if link.state is LinkState.ATTACHING:
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
            case ReplyLink():
                del self._replies[link]

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
        elif link.state is not LinkState.DETACHED and isinstance(link.node, Inlet | Outlet):
            self._links.add(link)
            self.broker.arm_by(self, now + self.broker.link_idle_timeout)

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
            self._replies[link] = link.node
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
        for part in ("", *parts_of(path[:_MAX_PATH])):
            grant = self._grants.get(part)
            if grant is not None and grant.expires_at > now:
                rights |= grant.rights
        return rights

    def expire_tokens(self, now: float) -> None:
        """Revoke the tokens that were put so far."""
        self._grants.clear()
        self.tick(now)

    def _put_token(self, request: AmqpRequest, now: float) -> Reply:
        reply, grant = put_token(request, self.broker.namespace.authenticate, now)
        if grant is not None:
            self._grant(grant)
        return reply

    def _log_in(self, name: str, password: str) -> bool:
        grant = self.broker.namespace.log_in(name, password)
        if grant is not None:
            self._grant(grant)
        return grant is not None

    def _grant(self, grant: SasGrant) -> None:
        self.connection.known = True
        self._grants[grant.path] = grant
        while len(self._grants) > MAX_GRANTS:
            self._grants.popitem(last=False)
        self.broker.arm_by(self, grant.expires_at)

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
        quiet = min((link.last_used for link in self._links), default=None)
        rest = self._last_used + idle / 2 if quiet is None else quiet + idle
        expiry = min((grant.expires_at for grant in self._grants.values()), default=math.inf)
        known = math.inf if self.connection.known else self._stranger_until
        return min(self.connection.next_deadline(), rest, expiry, known)

    def tick(self, now: float) -> None:
        """Do what has come due: heartbeats, and the ends of what is idle or no longer permitted."""
        self._handle(self.connection.tick(now), now)
        for path in [path for path, grant in self._grants.items() if grant.expires_at <= now]:
            del self._grants[path]
        idle = self.broker.link_idle_timeout
        for link in list(self._links):
            if link.last_used + idle <= now:
                self.expel(link, _idle(idle), now)
            elif not self._permitted(link, now):
                self.expel(link, AmqpError("amqp:unauthorized-access", "ExpiredToken: put a new one."), now)
        if not self.ended and not self.connection.known and self._stranger_until <= now:
            self.close(_STRANGER, now)
        if not self.ended and not self._links and self._last_used + idle / 2 <= now:
            self.close(AmqpError("amqp:connection:forced", "The connection had no links for too long."), now)
        self.touch()

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
        for link in list(self._links):
            if link.node.node.entity is entity:
                self.expel(link, _missing(entity.name), now)


class BrokerCore:
    """A namespace and all who are connected to it."""

    def __init__(
        self,
        namespace: Namespace,
        *,
        link_idle_timeout: float,
        on_error: Callable[[str], None] = lambda where: None,
    ) -> None:
        self.namespace = namespace
        self.on_error = on_error
        """Called while an exception is handled that no client should be able to bring about; says where."""
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
        peer = Peer(self, now)
        self.peers.add(peer)
        self.arm(peer)
        return peer

    def forget(self, peer: Peer) -> None:
        """Remove a connection that has ended."""
        self.peers.discard(peer)

    def take_touched(self, now: float) -> set[Peer]:
        """Return the peers that may have something to send, since last asked."""
        stirred, self._stirred = self._stirred, set()
        for node in stirred:
            try:
                self._follow_up(node, now)
            except Exception:
                self.on_error(f"the queue {node.path!r}")
                self.arm_by(node, now + _PAUSE)
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
        self.arm_by(thing, thing.next_deadline())

    def arm_by(self, thing: Peer | QueueNode, deadline: float) -> None:
        """Note a deadline that is new, without looking at all the others."""
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
            try:
                thing.tick(now)
                if isinstance(thing, QueueNode):
                    self._tidy(thing, now)
                self.arm(thing)
            except Exception:
                self._failed(thing, now)

    def _failed(self, thing: Peer | QueueNode, now: float) -> None:
        """Go on after a failure in what was due: the clocks of all others, and a queue's own, run on."""
        if isinstance(thing, Peer):
            thing.fail(now)
        else:
            self.on_error(f"the clock of the queue {thing.path!r}")
            self.arm_by(thing, now + _PAUSE)

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


_INTERNAL = AmqpError("amqp:internal-error", "The local Service Bus failed: its log says how.")
_STRANGER = AmqpError(
    "amqp:unauthorized-access",
    f"No valid token was put to {CBS} within {STRANGER_TIMEOUT:g} s after the connection was opened.",
)


def _unauthorized(claim: str, path: str) -> AmqpError:
    return AmqpError(
        "amqp:unauthorized-access",
        f"Unauthorized access. '{claim}' claim(s) are required for this operation. "
        f"Resource: '{path[:_MAX_PATH]}'.",
    )


def _missing(path: str) -> AmqpError:
    return AmqpError("amqp:not-found", f"The messaging entity '{path[:_MAX_PATH]}' could not be found.")


def _idle(timeout: float) -> AmqpError:
    return AmqpError(
        "amqp:link:detach-forced", f"The link was idle for {timeout:g} s. IdleTimerExpired: Idle timeout."
    )
