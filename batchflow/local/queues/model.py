"""The values of queues: settings, messages, and refusals."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Hashable

MAX_STATE_SIZE = 262_144
MAX_ID_LENGTH = 128


class QueueRefusal(Exception):
    """An operation was refused; nothing has changed."""


class LockLost(QueueRefusal):
    """The lock token is unknown, or its lock has expired, been settled or been freed."""


class SessionLockLost(QueueRefusal):
    """The caller does not hold the lock of this session (any more)."""


class SessionCannotBeLocked(QueueRefusal):
    """Another holder has the session."""


class MessageNotFound(QueueRefusal):
    """No message with that sequence number is in the state that the operation needs."""


class MessageSizeExceeded(QueueRefusal):
    """A message, a batch or a session state exceeds its limit."""


class QueueFull(QueueRefusal):
    """The messages would exceed the queue's quota."""


class NotAllowed(QueueRefusal):
    """The queue is not of the kind that the operation needs, or an argument is out of range."""


class Place(Enum):
    """The place of a message in the queue."""

    READY = "ready"
    LOCKED = "locked"
    DEFERRED = "deferred"
    SCHEDULED = "scheduled"
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueProperties:
    """The settings of a queue. Durations are seconds, sizes bytes; the defaults are Service Bus's own."""

    lock_duration: float = 60.0
    max_delivery_count: int = 10
    requires_session: bool = False
    default_ttl: float | None = None
    """Time to live of messages that name none, and the upper bound of those that do; None is unlimited."""
    dead_letter_on_expiration: bool = False
    duplicate_window: float | None = None
    """How long a message id is remembered; None turns duplicate detection off."""
    max_size: int = 1 << 30
    max_message_size: int = 262_144


@frozen
class Draft:
    """A message on its way in."""

    body: bytes
    message_id: str
    session_id: str | None = None
    ttl: float | None = None
    scheduled_for: float | None = None
    """When the message becomes visible, in seconds since the epoch; None, or a past time, is at once."""
    headers: Any = None
    """A value that the shell gets back with the body. The queue does not look at it."""
    size: int | None = None
    """What counts against the limits, in bytes; None is the length of the body."""


@dataclass(slots=True, eq=False)
class Message:
    """A message in a queue. Shells read it; only the queue writes to it."""

    number: int
    body: bytes
    message_id: str
    session_id: str | None
    headers: Any
    size: int
    enqueued_at: float
    ttl: float | None
    scheduled_for: float | None
    place: Place = Place.READY
    expires_at: float | None = None
    delivery_count: int = 0
    deferred: bool = False
    lock_token: bytes = b""
    locked_until: float = 0.0
    receiver_id: Hashable = None
    dead_letter_reason: str | None = None
    dead_letter_description: str | None = None


class SessionLock(NamedTuple):
    """A session that was just locked, and until when."""

    session_id: str
    locked_until: float


class LostSession(NamedTuple):
    """A session whose lock ran out under its holder."""

    session_id: str
    holder: Hashable


class MessageCounts(NamedTuple):
    """Numbers of messages: active (ready, locked or deferred), scheduled, and dead-lettered."""

    active: int
    scheduled: int
    dead_lettered: int
