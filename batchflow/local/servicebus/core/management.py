"""What ``{queue}/$management`` can do: the operations of Service Bus that are requests, not links (pure).

(https://learn.microsoft.com/azure/service-bus-messaging/service-bus-amqp-request-response)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from batchflow.local.amqp.codec import Array, DecodeError, Int, Symbol, Timestamp
from batchflow.local.queues import (
    LockLost,
    MessageNotFound,
    NotAllowed,
    Place,
    QueueRefusal,
    SessionLockLost,
)
from batchflow.local.security.sas import Rights
from batchflow.local.servicebus.core.links import (
    CONDITIONS,
    Outlet,
    QueueNode,
    amend,
    read_draft,
    render,
)
from batchflow.local.servicebus.core.requests import MAX_REQUEST_SIZE, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from batchflow.local.amqp.engine import Connection
    from batchflow.local.amqp.message import AmqpRequest
    from batchflow.local.queues import Message

_MAX_PAGE = 1_000
_MAX_SESSIONS_PAGE = 100
_NO_TIME_LIMIT_MS = 253_402_300_000_000
"""Clients ask for sessions updated after the year 9999 to mean any session."""


class ManagementRequest(NamedTuple):
    """One request: where it was sent, by which connection, when, and its body."""

    node: QueueNode
    connection: Connection
    now: float
    body: Mapping[str, Any]

    def holder(self, session_id: str) -> Outlet:
        """Return the outlet of the caller's connection that holds the session."""
        holder = self.node.queue.session_holder(session_id, self.now)
        if not isinstance(holder, Outlet) or holder.connection is not self.connection:
            raise SessionLockLost(f"the lock of session {session_id!r} is not held by this connection")
        return holder

    def get(self, key: str, type_: type | tuple[type, ...]) -> Any:
        """Return an argument of the request. Raises :class:`NotAllowed` for one of another type."""
        value = self.body.get(key)
        if not isinstance(value, type_):
            raise NotAllowed(f"the argument {key!r} is missing or of a wrong type")
        return value

    def numbers(self) -> list[int]:
        """Return the sequence numbers that the request names."""
        numbers: list[Any] = self.get("sequence-numbers", list)
        if not all(isinstance(number, int) for number in numbers):
            raise NotAllowed("a sequence number is not a number")
        return numbers

    def tokens(self) -> list[bytes]:
        """Return the lock tokens that the request names."""
        tokens: list[Any] = self.get("lock-tokens", list)
        if not all(isinstance(token, UUID) for token in tokens):
            raise NotAllowed("a lock token is not a UUID")
        return [token.bytes_le for token in tokens]


def answer(
    request: AmqpRequest, node: QueueNode, connection: Connection, rights: Rights, now: float
) -> Reply:
    """Do what a request asks for, if the rights permit it, and say what came of it."""
    name = str(request.properties.get("operation", "")).removeprefix("com.microsoft:")
    known = _OPERATIONS.get(name)
    if known is None:
        detail = f"The operation '{name[:64]}' is not part of the local Service Bus."
        return _told(501, detail, "amqp:not-implemented")
    right, operation = known
    if right not in rights:
        detail = f"Unauthorized access. '{right.name}' claim is required to perform this operation."
        return _told(401, detail, "amqp:unauthorized-access")
    body = request.body if isinstance(request.body, dict) else {}
    node.entity.operations.requests += 1
    try:
        result = operation(ManagementRequest(node, connection, now, body))
    except QueueRefusal as refusal:
        return _told(_status(refusal), str(refusal), CONDITIONS[type(refusal)])
    except DecodeError as error:
        return _told(400, str(error), "amqp:decode-error")
    if result is None:
        return _told(204, "There is nothing.", None)
    return Reply({"statusCode": Int(200), "statusDescription": "OK"}, result)


def _told(status: int, description: str, condition: str | None) -> Reply:
    properties = {"statusCode": Int(status), "statusDescription": description}
    return Reply(properties | ({"errorCondition": Symbol(condition)} if condition else {}))


def _status(refusal: QueueRefusal) -> int:
    match refusal:
        case LockLost() | SessionLockLost():
            return 410
        case MessageNotFound():
            return 404
        case NotAllowed():
            return 400
        case _:
            return 403


def missing(description: str) -> Reply:
    """Return the answer to a request about a queue that is gone."""
    return _told(404, description, "amqp:not-found")


def busy(description: str) -> Reply:
    """Return the answer to any request while the namespace is throttled."""
    return _told(503, description, "com.microsoft:server-busy")


def _milliseconds(when: float) -> Timestamp:
    return Timestamp(int(when * 1000))


def _renew_lock(call: ManagementRequest) -> dict[str, Any]:
    ends = [call.node.queue.renew(token, call.now) for token in call.tokens()]
    return {"expirations": Array(Timestamp, [_milliseconds(end) for end in ends])}


def _renew_session_lock(call: ManagementRequest) -> dict[str, Any]:
    session_id = call.get("session-id", str)
    end = call.node.queue.renew_session(session_id, call.holder(session_id), call.now)
    return {"expiration": _milliseconds(end)}


def _get_session_state(call: ManagementRequest) -> dict[str, Any]:
    session_id = call.get("session-id", str)
    return {"session-state": call.node.queue.session_state(session_id, call.holder(session_id), call.now)}


def _set_session_state(call: ManagementRequest) -> dict[str, Any]:
    session_id = call.get("session-id", str)
    state = call.get("session-state", (bytes, type(None)))
    call.node.queue.set_session_state(session_id, call.holder(session_id), state, call.now)
    return {}


def _get_message_sessions(call: ManagementRequest) -> dict[str, Any] | None:
    after = call.get("last-updated-time", Timestamp)
    skip, top = call.get("skip", int), call.get("top", int)
    everything = after >= _NO_TIME_LIMIT_MS
    ids = call.node.queue.session_ids(call.now, updated_after=None if everything else after / 1000)
    page = ids[max(skip, 0) :][: max(0, min(top, _MAX_SESSIONS_PAGE))]
    return {"sessions-ids": Array(str, page), "skip": Int(skip + len(page))} if page else None


def _peek(call: ManagementRequest) -> dict[str, Any] | None:
    first = call.get("from-sequence-number", int)
    count = max(0, min(call.get("message-count", int), _MAX_PAGE))
    session_id = call.get("session-id", (str, type(None)))
    messages = call.node.queue.peek(count, call.now, from_number=first, session_id=session_id)
    payloads = list(_page(messages))
    for payload in payloads:
        call.node.entity.operations.went(len(payload))
    return {"messages": [{"message": payload} for payload in payloads]} if payloads else None


def _page(messages: Iterable[Message]) -> Iterator[bytes]:
    """Render messages until they fill a reply; the client asks again for what follows."""
    size = 0
    for message in messages:
        payload = render(message)
        size += len(payload)
        if size > MAX_REQUEST_SIZE and size != len(payload):
            return
        yield payload


def _schedule(call: ManagementRequest) -> dict[str, Any]:
    if call.node.queue.dead_letters is None:
        raise NotAllowed("nothing can be sent to a dead-letter queue")
    drafts = []
    for entry in call.get("messages", list):
        payload = entry.get("message") if isinstance(entry, dict) else None
        if not isinstance(payload, bytes):
            raise NotAllowed("a message to schedule is not binary")
        drafts.append(read_draft(payload, call.node.new_id))
        call.node.entity.operations.came(len(payload))
    numbers = call.node.queue.send(drafts, call.now)
    call.node.pump(call.now)
    return {"sequence-numbers": Array(int, numbers)}


def _cancel_scheduled(call: ManagementRequest) -> dict[str, Any]:
    call.node.queue.cancel_scheduled(call.numbers(), call.now)
    return {}


def _receive_deferred(call: ManagementRequest) -> dict[str, Any]:
    deletes = call.get("receiver-settle-mode", int) == 0
    session_id = call.get("session-id", (str, type(None)))
    receiver = call.holder(session_id) if session_id is not None else call.connection
    messages = call.node.queue.receive_deferred(
        call.numbers(), call.now, receiver, session_id=session_id, delete=deletes
    )
    return {"messages": [_handed_over(call, message) for message in messages]}


def _handed_over(call: ManagementRequest, message: Message) -> dict[str, Any]:
    payload = render(message)
    call.node.entity.operations.went(len(payload))
    handed: dict[str, Any] = {"message": payload}
    if message.place is Place.LOCKED:
        handed["lock-token"] = UUID(bytes_le=message.lock_token)
    return handed


def _update_disposition(call: ManagementRequest) -> dict[str, Any]:
    settle = _dispositions(call).get(call.get("disposition-status", str))
    if settle is None:
        raise NotAllowed("the disposition is not one of completed, abandoned, defered and suspended")
    properties = call.body.get("properties-to-modify") or {}
    for token in call.tokens():
        amend(call.node.queue, token, properties, call.now)
        settle(token, call.now)
    call.node.pump(call.now)
    return {}


def _dispositions(call: ManagementRequest) -> dict[str, Callable[[bytes, float], None]]:
    queue = call.node.queue
    reason = call.get("deadletter-reason", (str, type(None)))
    detail = call.get("deadletter-description", (str, type(None)))
    return {
        "completed": queue.complete,
        "abandoned": queue.abandon,
        "defered": queue.defer,
        "suspended": lambda token, now: queue.dead_letter(token, now, reason, detail),
    }


_OPERATIONS: dict[str, tuple[Rights, Callable[[ManagementRequest], dict[str, Any] | None]]] = {
    "renew-lock": (Rights.LISTEN, _renew_lock),
    "renew-session-lock": (Rights.LISTEN, _renew_session_lock),
    "get-session-state": (Rights.LISTEN, _get_session_state),
    "set-session-state": (Rights.LISTEN, _set_session_state),
    "get-message-sessions": (Rights.LISTEN, _get_message_sessions),
    "peek-message": (Rights.LISTEN, _peek),
    "schedule-message": (Rights.SEND, _schedule),
    "cancel-scheduled-message": (Rights.SEND, _cancel_scheduled),
    "receive-by-sequence-number": (Rights.LISTEN, _receive_deferred),
    "update-disposition": (Rights.LISTEN, _update_disposition),
}
