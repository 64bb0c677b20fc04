"""The queues in memory: a thin shell over the core of the local cloud's Service Bus."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from batchflow.errors import (
    Backpressure,
    BrokerError,
    LeaseLost,
    MailboxInUse,
    MailboxNotFound,
    MessageTooLarge,
    QueueNotFound,
)
from batchflow.local import queues as core
from batchflow.ports.broker import Delivery, QueueFigures, QueueRef
from batchflow.testing.closing import CheckedClosing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from batchflow.ports.broker import Mailbox, OutgoingMessage, QueueSpec, Receiver, Sender

_REFUSALS: Mapping[type[core.QueueRefusal], type[BrokerError]] = {
    core.LockLost: LeaseLost,
    core.SessionLockLost: LeaseLost,
    core.SessionCannotBeLocked: MailboxInUse,
    core.MessageNotFound: LeaseLost,
    core.MessageSizeExceeded: MessageTooLarge,
    core.QueueFull: Backpressure,
}


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except core.QueueRefusal as refusal:
        kind = _REFUSALS.get(type(refusal), BrokerError)
        raise kind(str(refusal), retryable=kind in (Backpressure, MailboxInUse)) from refusal


@dataclass(slots=True, eq=False)
class _Queue:
    """A queue, with a notification of changes."""

    spec: QueueSpec
    state: core.Queue
    gone: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self, limit: float) -> None:
        """Wait until something may have changed, at most `limit` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self._changed.wait()


class _Link(CheckedClosing):
    """One end of a queue."""

    def __init__(self, broker: MemoryBroker, queue: _Queue) -> None:
        self._broker = broker
        self._queue = queue

    async def aclose(self) -> None:
        await super().aclose()
        self._queue.changed()

    def _state(self) -> core.Queue:
        if self.closed or self._broker.closed:
            raise BrokerError(f"the link to {self._queue.spec.name} is closed")
        if self._queue.gone:
            raise QueueNotFound(f"queue {self._queue.spec.name} was deleted")
        return self._queue.state


L = TypeVar("L", bound=_Link)


class _Sender(_Link):
    async def send(self, *messages: OutgoingMessage) -> None:
        self._put(messages, None)

    async def schedule(self, message: OutgoingMessage, at: float) -> None:
        self._put((message,), at)

    def _put(self, messages: Sequence[OutgoingMessage], at: float | None) -> None:
        drafts = [
            core.Draft(each.body, each.message_id, each.session_id, each.time_to_live, scheduled_for=at)
            for each in messages
        ]
        state = self._state()
        if (size := sum(len(each.body) for each in messages)) > state.spec.max_message_size:
            raise MessageTooLarge(f"{len(messages)} messages of {size} bytes are too large for one send")
        with _translated():
            state.send(drafts, self._broker.now())
        self._queue.changed()


class _Inbox(_Link):
    """The common part of receivers and mailboxes."""

    _session_id: str | None = None

    def _source(self) -> core.Queue:
        return self._state()

    async def receive(self, max_wait: float) -> Delivery | None:
        clock = asyncio.get_running_loop().time
        until = clock() + max_wait
        while True:
            now = self._broker.now()
            with _translated():
                self._state().advance(now)
                found = self._source().receive(1, now, self, session_id=self._session_id)
            if found:
                return _delivery(found[0])
            due = self._queue.state.next_deadline()
            left = until - clock()
            if left <= 0:
                return None
            await self._queue.change(left if due is None else min(left, max(due - now, 0.001)))

    async def complete(self, delivery: Delivery) -> None:
        with _translated():
            self._source().complete(bytes.fromhex(delivery.lock_token), self._broker.now())
        self._queue.changed()


def _delivery(message: core.Message) -> Delivery:
    return Delivery(
        body=message.body,
        message_id=message.message_id,
        sequence_number=message.number,
        delivery_count=message.delivery_count,
        lock_token=message.lock_token.hex(),
        enqueued_at=message.enqueued_at,
        session_id=message.session_id,
        dead_letter_reason=message.dead_letter_reason,
        dead_letter_description=message.dead_letter_description,
        locked_until=message.locked_until or None,
    )


class _Receiver(_Inbox):
    def __init__(self, broker: MemoryBroker, queue: _Queue, *, dead_letters: bool) -> None:
        super().__init__(broker, queue)
        self._dead_letters = dead_letters

    def _source(self) -> core.Queue:
        state = self._state()
        return state.dead_letters or state if self._dead_letters else state

    async def abandon(self, delivery: Delivery) -> None:
        with _translated():
            self._source().abandon(bytes.fromhex(delivery.lock_token), self._broker.now())
        self._queue.changed()

    async def dead_letter(self, delivery: Delivery, reason: str, description: str) -> None:
        token = bytes.fromhex(delivery.lock_token)
        with _translated():
            self._source().dead_letter(token, self._broker.now(), reason, description)
        self._queue.changed()

    async def renew(self, delivery: Delivery) -> None:
        with _translated():
            self._source().renew(bytes.fromhex(delivery.lock_token), self._broker.now())


class _Mailbox(_Inbox):
    def __init__(self, broker: MemoryBroker, queue: _Queue, session_id: str) -> None:
        super().__init__(broker, queue)
        self.session_id = session_id
        self._session_id = session_id
        with _translated():
            lock = self._state().accept_session(session_id, self, broker.now())
        self.locked_until: float | None = None if lock is None else lock.locked_until

    async def renew(self) -> None:
        with _translated():
            self._state().renew_session(self.session_id, self, self._broker.now())

    async def get_state(self) -> bytes | None:
        with _translated():
            return self._state().session_state(self.session_id, self, self._broker.now())

    async def set_state(self, state: bytes) -> None:
        with _translated():
            self._state().set_session_state(self.session_id, self, state, self._broker.now())

    async def aclose(self) -> None:
        if not self.closed:
            self._queue.state.release_session(self.session_id, self, self._broker.now())
        await super().aclose()


class MemoryBroker(CheckedClosing):
    """Service Bus in memory: the `Broker` and the `BrokerAdmin` of one namespace.

    Queues are made with `create_queue`; all that the ports say holds. Closing it ends all its links.
    """

    def __init__(self, namespace: str = "memory", *, clock: Callable[[], float] = time.time) -> None:
        self.namespace = namespace
        self.now = clock
        self._queues: dict[str, _Queue] = {}
        self._links: list[_Link] = []

    def tick(self) -> None:
        """Let waiting receivers look again, because the clock was moved."""
        for queue in self._queues.values():
            queue.changed()

    async def sender(self, queue: QueueRef) -> Sender:
        return self._kept(_Sender(self, self._queue(queue)))

    async def receiver(self, queue: QueueRef, *, prefetch: int = 0, dead_letters: bool = False) -> Receiver:
        return self._kept(_Receiver(self, self._queue(queue), dead_letters=dead_letters))

    async def mailbox(self, queue: QueueRef, session_id: str, *, prefetch: int = 50) -> Mailbox:
        try:
            found = self._queue(queue)
        except QueueNotFound as error:
            raise MailboxNotFound(str(error)) from error
        return self._kept(_Mailbox(self, found, session_id))

    def _kept(self, link: L) -> L:
        self._links = [each for each in self._links if not each.closed]
        self._links.append(link)
        return link

    def _queue(self, ref: QueueRef) -> _Queue:
        if ref.namespace != self.namespace or ref.entity not in self._queues:
            raise QueueNotFound(f"there is no queue {ref.entity} in {ref.namespace}")
        return self._queues[ref.entity]

    async def create_queue(self, spec: QueueSpec) -> bool:
        if spec.name in self._queues:
            return False
        settings = core.QueueProperties(
            lock_duration=spec.lock_duration,
            max_delivery_count=spec.max_delivery_count,
            requires_session=spec.sessions,
            default_ttl=spec.time_to_live,
            dead_letter_on_expiration=True,
            duplicate_window=spec.duplicate_window,
        )
        self._queues[spec.name] = _Queue(spec, core.Queue(settings))
        return True

    async def delete_queue(self, name: str) -> bool:
        queue = self._queues.pop(name, None)
        if queue is None:
            return False
        queue.gone = True
        queue.changed()
        return True

    async def connection_string(self, queue: str, rule: str) -> str:
        spec = self._queue(QueueRef(self.namespace, queue)).spec
        if rule not in {each.name for each in spec.rules}:
            raise BrokerError(f"queue {queue} has no access rule named {rule}")
        return f"Endpoint=sb://{self.namespace}/;SharedAccessKeyName={rule};EntityPath={queue}"

    async def figures(self, queue: str) -> QueueFigures:
        state = self._queue(QueueRef(self.namespace, queue)).state
        state.advance(self.now())
        counts = state.counts
        return QueueFigures(active=counts.active, scheduled=counts.scheduled, dead=counts.dead_lettered)

    async def queues(self) -> list[str]:
        return sorted(self._queues)

    async def aclose(self) -> None:
        for link in self._links:
            await link.aclose()
        self._links.clear()
        await super().aclose()
        self.tick()
