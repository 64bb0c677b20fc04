"""Test doubles of the ports to the queues and to the blobs: in memory, in this process, without Azure.

They pass the same conformance tests as the adaptors to Azure. `MemoryBroker` is a thin shell over the core
that the local cloud's Service Bus is made of, so locks expire, deliveries are counted, duplicates dropped and
sessions held as there; it knows no keys, and access rules are kept but not enforced.

Both take a `clock` (seconds since the epoch). With one that a test moves by hand, call `MemoryBroker.tick`
after moving it, so that waiting receivers look again.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from batchflow.errors import (
    Backpressure,
    BlobConflict,
    BlobNotFound,
    BrokerError,
    LeaseLost,
    MailboxInUse,
    MailboxNotFound,
    MessageTooLarge,
    QueueNotFound,
)
from batchflow.local import queues as core
from batchflow.ports.broker import Delivery, QueueFigures, QueueRef
from batchflow.ports.storage import Blob, BlobInfo
from batchflow.support.closing import Closes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from os import PathLike

    from batchflow.ports.broker import Mailbox, OutgoingMessage, QueueSpec, Receiver, Sender
    from batchflow.ports.storage import AccessPolicy

__all__ = ["MemoryBroker", "MemoryContainer", "MemoryStorage"]

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


class _CheckedClosing(Closes):
    """The base of all doubles here. A closed one refuses to work."""

    closed = False

    async def aclose(self) -> None:
        self.closed = True


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


class _Link(_CheckedClosing):
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
            self._state().accept_session(session_id, self, broker.now())

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


class MemoryBroker(_CheckedClosing):
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


class MemoryContainer(_CheckedClosing):
    """A container in memory."""

    def __init__(self, storage: MemoryStorage, name: str) -> None:
        self._storage = storage
        self.name = name
        self.url = f"memory://{name}"

    def _blobs(self) -> dict[str, _MemoryBlob]:
        try:
            return self._storage.content[self.name]
        except KeyError:
            raise BlobNotFound(f"there is no container {self.name}") from None

    def _blob(self, name: str) -> _MemoryBlob:
        try:
            return self._blobs()[name]
        except KeyError:
            raise BlobNotFound(f"there is no blob {name} in container {self.name}") from None

    async def get(self, name: str) -> Blob:
        blob = self._blob(name)
        return Blob(blob.data, blob.etag)

    async def get_if_changed(self, name: str, etag: str | None) -> Blob | None:
        blob = self._blob(name)
        return None if blob.etag == etag else Blob(blob.data, blob.etag)

    async def put(self, name: str, data: bytes, *, if_match: str | None = None, create: bool = False) -> str:
        there = self._blobs().get(name)
        if create and there is not None:
            raise BlobConflict(f"blob {name} is there already")
        if if_match is not None and (there is None or there.etag != if_match):
            raise BlobConflict(f"blob {name} is not the version that was read")
        return self._write(name, data)

    def _write(self, name: str, data: bytes) -> str:
        blob = self._blobs()[name] = _MemoryBlob(data, self._storage.next_etag(), self._storage.now())
        return blob.etag

    async def append(self, name: str, data: bytes) -> None:
        there = self._blobs().get(name)
        self._write(name, data if there is None else there.data + data)

    async def upload(self, name: str, path: str | PathLike[str], *, create: bool = False) -> None:
        await self.put(name, Path(path).read_bytes(), create=create)

    async def download(self, name: str, path: str | PathLike[str]) -> None:
        Path(path).write_bytes(self._blob(name).data)

    async def delete(self, name: str, *, if_match: str | None = None) -> bool:
        there = self._storage.content.get(self.name, {}).get(name)
        if there is not None and if_match not in (None, there.etag):
            raise BlobConflict(f"blob {name} is not the version that was read")
        return self._storage.content.get(self.name, {}).pop(name, None) is not None

    async def list(self, prefix: str = "") -> AsyncIterator[BlobInfo]:
        for name, blob in sorted(self._blobs().items()):
            if name.startswith(prefix):
                age = self._storage.now() - blob.modified_at
                yield BlobInfo(name, len(blob.data), blob.etag, blob.modified_at, age)


@dataclass(frozen=True, slots=True)
class _MemoryBlob:
    data: bytes
    etag: str
    modified_at: float


class MemoryStorage(_CheckedClosing):
    """A Storage account in memory. Policies are kept in `policies`, signatures open nothing."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.now = clock
        self.content: dict[str, dict[str, _MemoryBlob]] = {}
        self.policies: dict[str, tuple[AccessPolicy, ...]] = {}
        self._etags = itertools.count(1)

    def next_etag(self) -> str:
        return f'"{next(self._etags):#x}"'

    def container(self, name: str) -> MemoryContainer:
        return MemoryContainer(self, name)

    async def create_container(self, name: str, policies: tuple[AccessPolicy, ...] = ()) -> bool:
        made = name not in self.content
        self.content.setdefault(name, {})
        self.policies[name] = policies
        return made

    async def delete_container(self, name: str) -> bool:
        self.policies.pop(name, None)
        return self.content.pop(name, None) is not None

    async def containers(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self.content if name.startswith(prefix))

    async def signature(self, container: str, policy: AccessPolicy) -> str:
        return f"si={policy.name}&sr=c"
