"""What a session asks of the broker: its links, counted.

Service Bus limits and bills by the operation. The Standard tier gives a namespace 1,000 credits a second, and
a message that is sent or received takes one
(https://learn.microsoft.com/azure/service-bus-messaging/service-bus-throttling); billed is every interaction,
so settling, renewing and a session's state as well. This is the session's side. The agents' is about the
same again: they receive and complete what is sent here, and send what is received here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from batchflow.ports.broker import Closable, Mailbox, Sender
from batchflow.support.closing import Closes

if TYPE_CHECKING:
    from batchflow.ports.broker import Delivery, OutgoingMessage

C = TypeVar("C", bound=Closable)


@dataclass(frozen=True, slots=True)
class SessionStats:
    """What a session has done since it was opened. Sizes are bytes of message bodies."""

    tasks_submitted: int
    results_received: int
    """Tasks that have an outcome, also those that this client decided itself."""
    messages_sent: int
    """Each a pack of tasks."""
    messages_received: int
    """Each a pack of results."""
    messages_settled: int
    renewals: int
    """Of the mailbox's lock."""
    state_operations: int
    """Reading and writing what a client that finds the session again needs to know."""
    bytes_sent: int
    bytes_received: int

    @property
    def credits(self) -> int:
        """What counts against the limit of the Standard tier."""
        return self.messages_sent + self.messages_received

    @property
    def broker_operations(self) -> int:
        """All interactions with the broker."""
        return self.credits + self.messages_settled + self.renewals + self.state_operations

    @property
    def broker_operations_per_task(self) -> float:
        """Of tasks that have an outcome; 0.0 as long as there is none."""
        return self.broker_operations / self.results_received if self.results_received else 0.0


@dataclass(slots=True)
class LinkCounter:
    """Counts what goes over the links that were given through it. Only what succeeded counts."""

    messages_sent: int = 0
    messages_received: int = 0
    messages_settled: int = 0
    renewals: int = 0
    state_operations: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    def sender(self, sender: Sender) -> Sender:
        return _CountedSender(sender, self)

    def mailbox(self, mailbox: Mailbox) -> Mailbox:
        return _CountedMailbox(mailbox, self)

    def stats(self, submitted: int, done: int) -> SessionStats:
        return SessionStats(
            tasks_submitted=submitted,
            results_received=done,
            messages_sent=self.messages_sent,
            messages_received=self.messages_received,
            messages_settled=self.messages_settled,
            renewals=self.renewals,
            state_operations=self.state_operations,
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
        )


class _Counted(Closes, Generic[C]):
    """A link behind a counter."""

    def __init__(self, link: C, counter: LinkCounter) -> None:
        self._link = link
        self._counter = counter

    async def aclose(self) -> None:
        await self._link.aclose()


class _CountedSender(_Counted[Sender]):
    async def send(self, *messages: OutgoingMessage) -> None:
        await self._link.send(*messages)
        self._count(*messages)

    async def schedule(self, message: OutgoingMessage, at: float) -> None:
        await self._link.schedule(message, at)
        self._count(message)

    def _count(self, *messages: OutgoingMessage) -> None:
        self._counter.messages_sent += len(messages)
        self._counter.bytes_sent += sum(len(message.body) for message in messages)


class _CountedMailbox(_Counted[Mailbox]):
    def __init__(self, link: Mailbox, counter: LinkCounter) -> None:
        super().__init__(link, counter)
        self.session_id = link.session_id
        self.locked_until = link.locked_until

    async def receive(self, max_wait: float) -> Delivery | None:
        delivery = await self._link.receive(max_wait)
        if delivery is not None:
            self._counter.messages_received += 1
            self._counter.bytes_received += len(delivery.body)
        return delivery

    async def complete(self, delivery: Delivery) -> None:
        await self._link.complete(delivery)
        self._counter.messages_settled += 1

    async def renew(self) -> None:
        await self._link.renew()
        self._counter.renewals += 1

    async def get_state(self) -> bytes | None:
        state = await self._link.get_state()
        self._counter.state_operations += 1
        return state

    async def set_state(self, state: bytes) -> None:
        await self._link.set_state(state)
        self._counter.state_operations += 1
