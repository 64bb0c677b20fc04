"""The queues of a namespace as AMQP nodes: links that messages come in on and go out on (sans-IO).

* An :class:`Inlet` is a link that a client sends on; an :class:`Outlet` one that it receives on.
* A :class:`QueueNode` joins one queue, or one dead-letter queue, with its outlets: receivers that have credit
  take turns; a session has one outlet; receivers that want any session wait in line until one is free.
* The delivery tag of a message is its lock token. Settling answers with the outcome that was asked for, and
  with ``rejected`` and an error when the lock is lost: SDKs take any rejection with an error for a failure.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from batchflow.local.amqp import performatives as wire
from batchflow.local.amqp.codec import DecodeError, Described, Symbol, encode
from batchflow.local.amqp.message import (
    BATCH_FORMAT,
    Envelope,
    Stamp,
    read_batch,
    read_message,
    with_application_properties,
    with_message_id,
    write_message,
)
from batchflow.local.amqp.performatives import AmqpError, OutcomeCode, Terminus
from batchflow.local.queues import (
    Draft,
    LockLost,
    Message,
    MessageNotFound,
    MessageSizeExceeded,
    NotAllowed,
    Place,
    Queue,
    QueueFull,
    QueueRefusal,
    SessionCannotBeLocked,
    SessionLockLost,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from batchflow.local.amqp.endpoints import AmqpDelivery, Link, Settling
    from batchflow.local.amqp.engine import Connection
    from batchflow.local.servicebus.core.namespace import Entity

MAX_MESSAGE_SIZE = 262_144
SESSION_FILTER = "com.microsoft:session-filter"
LOCKED_UNTIL = "com.microsoft:locked-until-utc"
CREDIT = 1_000
_FILTER_FIELD = 7
_TICKS_AT_EPOCH = 621_355_968_000_000_000

CONDITIONS: dict[type[QueueRefusal], str] = {
    LockLost: "com.microsoft:message-lock-lost",
    SessionLockLost: "com.microsoft:session-lock-lost",
    SessionCannotBeLocked: "com.microsoft:session-cannot-be-locked",
    MessageNotFound: "com.microsoft:message-not-found",
    MessageSizeExceeded: "amqp:link:message-size-exceeded",
    QueueFull: "amqp:resource-limit-exceeded",
    NotAllowed: "amqp:not-allowed",
}
SESSION_LOST = AmqpError("com.microsoft:session-lock-lost", "The lock of the session has expired.")
NO_SESSION = AmqpError("com.microsoft:timeout", "No session became available in time.")
_STATES = {Place.DEFERRED: 1, Place.SCHEDULED: 2}
_OUTCOMES: dict[Any, int] = {
    **{int(code): int(code) for code in OutcomeCode},
    **{f"amqp:{code.name.lower()}:list": int(code) for code in OutcomeCode},
}


class OutletPeer(Protocol):
    """The connection of an outlet, as far as the outlet uses it."""

    connection: Connection

    @property
    def held(self) -> bool:
        """Whether messages must wait: the client does not read, or is throttled."""

    def touch(self) -> None:
        """Note that there is something to send."""

    def expel(self, link: Link, error: AmqpError, now: float) -> None:
        """End one of its links from here."""


def error_of(refusal: QueueRefusal) -> AmqpError:
    """Translate a refusal into an error of AMQP."""
    return AmqpError(CONDITIONS[type(refusal)], str(refusal))


def ticks(when: float) -> int:
    """Return the seconds since the epoch as .NET ticks."""
    return int(when * 1000) * 10_000 + _TICKS_AT_EPOCH


def read_draft(payload: bytes, new_id: Callable[[], str]) -> Draft:
    """Return a message off the wire, ready for a queue; it gets a new id if it has none.

    Raises :class:`DecodeError`."""
    incoming = read_message(payload)
    bare, message_id = incoming.bare, incoming.message_id
    if message_id is None:
        message_id = new_id()
        bare = with_message_id(bare, message_id)
    return Draft(
        bare,
        message_id,
        incoming.session_id,
        None if incoming.ttl_ms is None else incoming.ttl_ms / 1000,
        None if incoming.scheduled_ms is None else incoming.scheduled_ms / 1000,
        incoming.envelope,
        len(payload),
    )


def render(message: Message) -> bytes:
    """Return a message of a queue, as it goes out on the wire."""
    locked = message.place is Place.LOCKED
    stamp = Stamp(
        message.delivery_count,
        message.number,
        int(message.enqueued_at * 1000),
        int(message.locked_until * 1000) if locked else None,
        1 if message.deferred else _STATES.get(message.place, 0),
        None if message.scheduled_for is None else int(message.scheduled_for * 1000),
    )
    bare = message.body
    if message.dead_letter_reason is not None or message.dead_letter_description is not None:
        reasons = {
            _REASON: message.dead_letter_reason,
            _DESCRIPTION: message.dead_letter_description,
        }
        bare = with_application_properties(bare, {key: text for key, text in reasons.items() if text})
    envelope: Envelope = message.headers
    return write_message(envelope, bare, stamp)


class QueueNode:
    """A queue, or its dead-letter queue, and the links that receive from it."""

    __slots__ = (
        "_patience",
        "armed_at",
        "entity",
        "new_id",
        "outlets",
        "path",
        "queue",
        "retired",
        "sessions",
        "waiting",
    )

    def __init__(self, path: str, entity: Entity, queue: Queue, new_id: Callable[[], str]) -> None:
        self.path = path
        self.new_id = new_id
        self.entity = entity
        self.queue = queue
        self.outlets: OrderedDict[Outlet, None] = OrderedDict()
        self.sessions: dict[str, Outlet] = {}
        self.waiting: OrderedDict[Outlet, float] = OrderedDict()
        """Those that want any session, in line, each with the time until which it waits."""
        self._patience: list[tuple[float, int, Outlet]] = []
        """A heap of those times, also of outlets that wait no more."""
        self.armed_at = math.inf
        self.retired = False
        """Set when the queue was deleted: there is nothing to wait for any more."""

    @property
    def idle(self) -> bool:
        """Whether the node has no receiver."""
        return not (self.outlets or self.sessions or self.waiting)

    def pump(self, now: float, session_ids: Iterable[str | None] | None = None) -> None:
        """Send out what is ready, to whom it can be sent; in a session queue, perhaps of some sessions."""
        if self.queue.spec.requires_session:
            self._seat(now)
            for session_id in list(self.sessions) if session_ids is None else session_ids:
                outlet = self.sessions.get(session_id or "")
                if outlet is not None:
                    outlet.fill(now)
            return
        idle = 0
        outlets = self.outlets
        while idle < len(outlets) and self.queue.has_ready():
            outlet = next(iter(outlets))
            outlets.move_to_end(outlet)
            idle = 0 if outlet.take(now) else idle + 1

    def _seat(self, now: float) -> None:
        """Give the sessions that are free to those who wait for any."""
        while self.waiting and self.queue.has_available_session():
            outlet, _ = self.waiting.popitem(last=False)
            outlet.open_session(None, now)

    def wait(self, outlet: Outlet, deadline: float) -> None:
        """Put an outlet at the end of the line of those that want any session."""
        self.waiting[outlet] = deadline
        heapq.heappush(self._patience, (deadline, id(outlet), outlet))

    def _impatient(self, now: float) -> Iterator[Outlet]:
        """Take out of the heap those whose time is over, and those that wait no more."""
        heap = self._patience
        while heap and (heap[0][0] <= now or heap[0][2] not in self.waiting):
            outlet = heapq.heappop(heap)[2]
            if outlet in self.waiting:
                yield outlet

    def next_deadline(self) -> float:
        """Return the time at which :meth:`tick` is due."""
        if self.retired:
            return math.inf
        deadline = self.queue.next_deadline()
        waiting = self._patience[0][0] if self._patience else math.inf
        return min(math.inf if deadline is None else deadline, waiting, self.entity.idle_deadline)

    def tick(self, now: float) -> None:
        """Do what has come due."""
        for _, holder in self.queue.advance(now):
            if isinstance(holder, Outlet):
                holder.peer.expel(holder.link, SESSION_LOST, now)
        for outlet in self._impatient(now):
            outlet.peer.expel(outlet.link, NO_SESSION, now)
        self.pump(now)

    def leave(self, outlet: Outlet, now: float) -> None:
        """Remove an outlet. Its session is free again; its other locks continue."""
        self.outlets.pop(outlet, None)
        if self.waiting.pop(outlet, None) is not None and len(self._patience) > 2 * len(self.waiting) + 64:
            self._patience = [entry for entry in self._patience if entry[2] in self.waiting]
            heapq.heapify(self._patience)
        session_id = outlet.session_id
        if session_id is not None and self.sessions.get(session_id) is outlet:
            del self.sessions[session_id]
            self.queue.release_session(session_id, outlet, now)
            self._seat(now)


class Outlet:
    """A link on which a client receives from a queue."""

    __slots__ = ("connection", "deletes", "link", "node", "peer", "session_id")

    def __init__(self, peer: OutletPeer, link: Link, node: QueueNode) -> None:
        self.peer = peer
        self.connection = peer.connection
        self.link = link
        self.node = node
        self.deletes = link.attach.snd_settle_mode == 1
        self.session_id: str | None = None

    def open(self, now: float) -> None:
        """Answer the attach, or wait in line for a session. May refuse."""
        source = Terminus.read(self.link.attach.source)
        filters = source.field(_FILTER_FIELD) if source else None
        filters = filters if isinstance(filters, dict) else {}
        wants_session = SESSION_FILTER in filters
        if wants_session != self.node.queue.spec.requires_session:
            kind = "requires" if self.node.queue.spec.requires_session else "does not have"
            self.connection.refuse(
                self.link,
                AmqpError("amqp:not-allowed", f"The receiver does not fit a queue that {kind} sessions."),
            )
        elif wants_session:
            self._ask_for_session(filters[SESSION_FILTER], now)
        else:
            self.connection.accept(self.link, max_message_size=MAX_MESSAGE_SIZE)
            self.node.outlets[self] = None

    def _ask_for_session(self, wanted: Any, now: float) -> None:
        if isinstance(wanted, Described):
            wanted = wanted.value
        if wanted is not None and not isinstance(wanted, str):
            error = AmqpError("amqp:invalid-field", "The session filter is neither a string nor null.")
            self.connection.refuse(self.link, error)
        elif wanted is None and not self.node.queue.has_available_session():
            timeout = self.link.attach.properties.get("com.microsoft:timeout", 60_000)
            patience = timeout / 1000 if isinstance(timeout, int) else 60.0
            self.node.wait(self, now + patience)
        else:
            self.open_session(wanted, now)

    def open_session(self, session_id: str | None, now: float) -> None:
        """Lock a session for this link and answer the attach."""
        self.peer.touch()
        try:
            lock = self.node.queue.accept_session(session_id, self, now)
        except QueueRefusal as refusal:
            self.connection.refuse(self.link, error_of(refusal))
            return
        assert lock is not None, "asked only when a session is named or available"
        self.session_id = lock.session_id
        self.node.sessions[lock.session_id] = self
        source = Terminus.read(self.link.attach.source)
        assert source is not None, "a session filter came with a source"
        self.connection.accept(
            self.link,
            source=source.replaced(_FILTER_FIELD, encode({Symbol(SESSION_FILTER): lock.session_id})),
            max_message_size=MAX_MESSAGE_SIZE,
            properties={LOCKED_UNTIL: ticks(lock.locked_until)},
        )
        self.flow(now)

    def take(self, now: float) -> bool:
        """Send one message if there is one and the link takes it; tell whether."""
        if not self.link.sendable or self.peer.held:
            return False
        messages = self.node.queue.receive(1, now, self, session_id=self.session_id, delete=self.deletes)
        for message in messages:
            tag = message.lock_token or message.number.to_bytes(16)
            payload = render(message)
            self.connection.send(self.link, tag, payload, settled=self.deletes)
            self.node.entity.operations.went(len(payload))
            self.peer.touch()
        return bool(messages)

    def fill(self, now: float) -> None:
        """Send as much as there is and the link takes."""
        try:
            while self.take(now):
                pass
        except SessionLockLost:
            return

    def flow(self, now: float) -> None:
        """Handle a client's credit, or its request to drain."""
        if self.session_id is not None:
            self.fill(now)
        else:
            while self.take(now):
                pass
        if self.link.drain:
            self.connection.drained(self.link)

    def settling(self, event: Settling, now: float) -> None:
        """Handle the settlement of a message by the client."""
        if event.state is None:
            return
        self.node.entity.operations.settled += 1
        try:
            answer = self._apply(event.tag, event.state, now)
        except QueueRefusal as refusal:
            answer = wire.rejected(self._lost(refusal))
        if answer is not None and not event.settled:
            self.connection.settle(self.link, event.delivery_id, answer)

    def _lost(self, refusal: QueueRefusal) -> AmqpError:
        if isinstance(refusal, LockLost) and self.session_id is not None:
            return AmqpError("com.microsoft:session-lock-lost", str(refusal))
        return error_of(refusal)

    def _apply(self, token: bytes, state: Described, now: float) -> bytes | None:
        """Do to the message what the state says, and return the outcome to answer with."""
        queue = self.node.queue
        fields = state.value if isinstance(state.value, list) else []
        match _OUTCOMES.get(state.descriptor):
            case OutcomeCode.ACCEPTED:
                queue.complete(token, now)
                return wire.ACCEPTED
            case OutcomeCode.REJECTED:
                reason, description, properties = _reasons(fields)
                amend(queue, token, properties, now)
                queue.dead_letter(token, now, reason, description)
                return wire.REJECTED
            case OutcomeCode.RELEASED:
                queue.release(token, now)
                self._offer_again(now)
                return wire.RELEASED
            case OutcomeCode.MODIFIED:
                return self._modify(token, fields, now)
            case OutcomeCode.RECEIVED:
                return None
            case _:
                return wire.rejected(AmqpError("amqp:not-implemented", "The outcome is not known here."))

    def _modify(self, token: bytes, fields: list[Any], now: float) -> bytes:
        failed, undeliverable, properties = (fields + [None] * 3)[:3]  # one SDK abandons without "failed"
        queue = self.node.queue
        amend(queue, token, properties or {}, now)
        if undeliverable:
            queue.defer(token, now)
        else:
            queue.abandon(token, now)
        self._offer_again(now)
        return wire.modified(failed=bool(failed), undeliverable=bool(undeliverable))

    def _offer_again(self, now: float) -> None:
        self.node.pump(now, (self.session_id,))


def amend(queue: Queue, token: bytes, properties: Any, now: float) -> None:
    """Change application properties of a locked message, as its settlement asks for.

    Raises :class:`QueueRefusal`: the lock is lost, or a property has no name or is not of a simple type.
    """
    if not isinstance(properties, dict):
        raise NotAllowed("the properties to modify are not a map")
    for name, value in properties.items():
        if not isinstance(name, str) or not isinstance(value, _SIMPLE):
            raise NotAllowed(
                f"the property {str(name)[:64]!r} cannot be modified: its type is not a simple one"
            )
    if properties:
        named = {str(name): value for name, value in properties.items()}
        queue.amend(token, now, lambda body: with_application_properties(body, named))


_SIMPLE = (str, bytes, bool, int, float, UUID, type(None))
_REASON, _DESCRIPTION = "DeadLetterReason", "DeadLetterErrorDescription"


def _reasons(fields: list[Any]) -> tuple[str | None, str | None, Any]:
    """Return the reasons of a dead-letter, and the properties that the message gets with them.

    They are in the info of the rejection's error; the reasons can be the error itself.
    """
    error = fields[0].value if fields and isinstance(fields[0], Described) else None
    if not isinstance(error, list):
        return None, None, {}
    condition, description, info = (error + [None] * 3)[:3]
    info = info if isinstance(info, dict) else {}
    reason = info.get(_REASON, None if condition == "com.microsoft:dead-letter" else condition)
    detail = info.get(_DESCRIPTION, description)
    others = {name: value for name, value in info.items() if name not in (_REASON, _DESCRIPTION)}
    return _text(reason), _text(detail), others


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return None if value is None else str(value)


class Inlet:
    """A link on which a client sends to a queue."""

    __slots__ = ("connection", "link", "node")

    def __init__(self, connection: Connection, link: Link, node: QueueNode) -> None:
        self.connection = connection
        self.link = link
        self.node = node

    def open(self) -> None:
        """Answer the attach and let the client send."""
        self.connection.accept(self.link, max_message_size=MAX_MESSAGE_SIZE)
        self.connection.grant(self.link, CREDIT)

    def delivery(self, event: AmqpDelivery, now: float) -> None:
        """Put a message, or the messages of a batch, into the queue and answer."""
        try:
            if len(event.payload) > MAX_MESSAGE_SIZE:
                detail = f"The received message has {len(event.payload)} bytes, over {MAX_MESSAGE_SIZE}."
                raise MessageSizeExceeded(detail)
            is_batch = event.message_format == BATCH_FORMAT
            payloads = read_batch(event.payload) if is_batch else [event.payload]
            drafts = [read_draft(payload, self.node.new_id) for payload in payloads]
            for payload in payloads:
                self.node.entity.operations.came(len(payload))
            self.node.queue.send(drafts, now)
        except QueueRefusal as refusal:
            self.answer(event, wire.rejected(error_of(refusal)))
        except DecodeError as error:
            self.answer(event, wire.rejected(AmqpError("amqp:decode-error", str(error))))
        else:
            self.answer(event, wire.ACCEPTED)
            self.node.pump(now, [draft.session_id for draft in drafts])

    def answer(self, event: AmqpDelivery, outcome: bytes) -> None:
        """Settle what came in, and keep the client in credit."""
        if not event.settled:
            self.connection.settle(self.link, event.delivery_id, outcome)
        if self.link.credit < CREDIT // 2:
            self.connection.grant(self.link, CREDIT)
