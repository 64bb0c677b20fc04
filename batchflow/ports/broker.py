"""The port to the queues: what batchflow needs of Service Bus, and nothing else.

Implemented by `batchflow.azure.servicebus` (the real SDK) and by `batchflow.testing` (in memory); both
pass the same conformance tests. Failures are `BrokerError`s. All durations are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, Protocol, Self

from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from types import TracebackType


@dataclass(frozen=True, slots=True, order=True)
class QueueRef:
    """A queue in a namespace. `namespace` is the host name, with the port where it is not the default."""

    namespace: str
    entity: str


@frozen
class OutgoingMessage:
    """A message to send. Its bytes and its id are frozen: a re-send is the same message."""

    body: bytes = field(repr=False)
    message_id: str
    session_id: str | None = None
    time_to_live: float | None = None
    """Seconds that the message lives; None: the queue's default."""


@frozen
class Delivery:
    """A message under our lock."""

    body: bytes = field(repr=False)
    message_id: str
    sequence_number: int
    delivery_count: int
    """Earlier deliveries that were not completed: 0 at the first."""
    lock_token: str
    enqueued_at: float
    """Seconds since the epoch, by the broker's clock."""
    session_id: str | None = None
    dead_letter_reason: str | None = None
    dead_letter_description: str | None = None
    locked_until: float | None = None
    """The end of the lock that the delivery got, as `enqueued_at`; None: the broker did not say."""


@frozen
class AccessRule:
    """Rights on one queue under one pair of keys."""

    name: str
    rights: frozenset[Literal["Send", "Listen", "Manage"]]


LEAST_IDLE: Final = 300.0
"""Minimum seconds without use before a queue deletes itself: Azure's limit."""


@frozen
class QueueSpec:
    """The properties of a new queue."""

    name: str
    sessions: bool = False
    lock_duration: float = 30.0
    """Seconds, at most 300 (Azure's limit)."""
    max_delivery_count: int = 1000
    duplicate_window: float | None = 600.0
    """Seconds of duplicate detection; None: no duplicate detection."""
    time_to_live: float | None = None
    """Seconds that a message lives; None: without end."""
    idle: float | None = None
    """Seconds without use after which the queue deletes itself, at least `LEAST_IDLE`; None: never."""
    rules: tuple[AccessRule, ...] = ()


@frozen
class QueueFigures:
    """The numbers of messages in a queue."""

    active: int
    scheduled: int
    dead: int


class Closable(Protocol):
    """Closed by `aclose` or by leaving `async with`; closing is idempotent, bounded, never raises."""

    async def aclose(self) -> None: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Sender(Closable, Protocol):
    """A link that sends to one queue. Calls from several coroutines are made one after another."""

    async def send(self, *messages: OutgoingMessage) -> None:
        """Send messages in one round trip; return when the broker has accepted all of them.

        It accepts all or none. After a cancellation or a failure the outcome may be unknown. Send the same
        messages again then: duplicate detection drops the second ones.

        Raises `MessageTooLarge` (several are together at most as large as one may be), `Backpressure`,
        `QueueNotFound`, or another `BrokerError`, whose `retryable` says whether sending again makes sense
        (the link re-opens itself at the next call).
        """

    async def schedule(self, message: OutgoingMessage, at: float) -> None:
        """Send messages to be delivered not before `at` (seconds since the epoch, the broker's clock)."""


class Receiver(Closable, Protocol):
    """A link that receives from one queue under peek-lock.

    `receive` has one caller at a time; the other methods may be called at any time, also while a `receive`
    waits, by any coroutine of the same event loop. After a lost connection the next call re-opens the link.
    """

    async def receive(self, max_wait: float) -> Delivery | None:
        """Return the next message, or None when none came within `max_wait` seconds.

        Safe to cancel: a message that arrives meanwhile is kept for the next call, and given back to the
        broker at `aclose`.
        """

    async def complete(self, delivery: Delivery) -> None:
        """Remove a message from the queue for good. Raises `LeaseLost`."""

    async def abandon(self, delivery: Delivery) -> None:
        """Give a message back at once; this counts as a delivery. Raises `LeaseLost`."""

    async def dead_letter(self, delivery: Delivery, reason: str, description: str) -> None:
        """Move a message to the dead-letter queue. Raises `LeaseLost`."""

    async def renew(self, delivery: Delivery) -> None:
        """Hold the message for another full lock duration from now. Raises `LeaseLost`."""


class Mailbox(Closable, Protocol):
    """A session of a session-enabled queue, held by us alone until closed or lost.

    Same rules as `Receiver`. `LeaseLost` from any method means that the mailbox itself is lost: open another.
    """

    session_id: str
    locked_until: float | None
    """The end of the lock that the opening got: seconds since the epoch, by the broker's clock.

    None when the broker did not say.
    """

    async def receive(self, max_wait: float) -> Delivery | None: ...

    async def complete(self, delivery: Delivery) -> None: ...

    async def renew(self) -> None:
        """Hold the session for another full lock duration from now."""

    async def get_state(self) -> bytes | None: ...

    async def set_state(self, state: bytes) -> None:
        """Write the session's state, at most 256 KB (Standard tier)."""


class Broker(Closable, Protocol):
    """Service Bus, as a client or an agent may use it by its rights."""

    async def sender(self, queue: QueueRef) -> Sender:
        """Open a link; return when it is open, so that a missing right or queue raises here."""

    async def receiver(
        self, queue: QueueRef, *, prefetch: int = 0, dead_letters: bool = False
    ) -> Receiver: ...

    async def mailbox(self, queue: QueueRef, session_id: str, *, prefetch: int = 50) -> Mailbox:
        """Open a mailbox. Raises `MailboxInUse` at once when another client holds it (no retries here)."""


class BrokerAdmin(Closable, Protocol):
    """The operations that need the right Manage: to create, describe and delete queues."""

    namespace: str

    async def create_queue(self, spec: QueueSpec) -> bool:
        """Create a queue with its access rules. An existing queue is left as it is: False."""

    async def delete_queue(self, name: str) -> bool:
        """Delete a queue; return False when there was none."""

    async def connection_string(self, queue: str, rule: str) -> str:
        """Return the connection string of one access rule of one queue: a secret."""

    async def figures(self, queue: str) -> QueueFigures:
        """Return the numbers of messages in a queue. Raises `QueueNotFound`."""

    async def queues(self) -> list[str]:
        """Return the names of all queues of the namespace."""
