"""The port to the queues, on the Service Bus SDK.

How this adaptor uses the SDK, and why:

* One SDK handler for each of our senders, receivers and mailboxes, kept by an `SdkLink`, never shared. Each
  has its own connection. Nothing of the SDK is ever cancelled from outside (`batchflow.azure.amqp_handler`).
* The SDK's retries are off (`retry_total=0`): a failure is raised at once, typed; the link reopens at the
  next call, with backoff.
* Messages are received one at a time: asked for more, the SDK waits 0.2 s for them to come.
* Receiving and settling take turns (see `batchflow.azure.amqp_handler`), so a settlement may wait
  `RECEIVE_TURN` seconds for a receive that waits for a message. It is not urgent; a message that comes is not
  kept waiting.
* The SDK refuses to settle a message whose lock has run out *by the local clock*. The broker's word is what
  counts, and local clocks are wrong, so the lock's end is taken off each message as it arrives.
"""

from __future__ import annotations

import asyncio
import copy
import ssl
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from batchflow.azure.amqp_handler import Handler, SdkCall
from batchflow.azure.amqp_link import SdkLink
from batchflow.azure.namespaces import each_of, endpoint_of, host_of, is_encrypted, malformed, namespace_of
from batchflow.azure.sdk_patches import patched, reading_of, without_requests
from batchflow.azure.servicebus_admin import ServiceBusAdmin
from batchflow.azure.transport import trusting
from batchflow.errors import (
    Backpressure,
    BrokerError,
    ConfigurationError,
    LeaseLost,
    MailboxNotFound,
    MessageTooLarge,
    QueueNotFound,
)
from batchflow.ports.broker import Delivery
from batchflow.support.closing import Closes

with without_requests():
    from azure.servicebus import ServiceBusSubQueue, TransportType
    from azure.servicebus.aio import ServiceBusClient
    from azure.servicebus.amqp import AmqpAnnotatedMessage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from azure.servicebus import ServiceBusReceivedMessage
    from azure.servicebus.aio import ServiceBusReceiver, ServiceBusSender

    from batchflow.azure.identity import Credential
    from batchflow.ports.broker import OutgoingMessage, QueueRef

__all__ = ["ServiceBusAdmin", "ServiceBusBroker", "namespace_of"]

T = TypeVar("T")
H = TypeVar("H", bound=Handler)

_NO_WAIT = 1e-9
"""Seconds of a receive that only looks at what the SDK has read already."""
ATTEMPT_LIMIT = 8.0
"""Timeout in seconds for opening a link, a send, a renewal."""
READ_SLICE = 0.2
"""Seconds that the SDK waits for a frame before it checks the time, other than in a receive."""
SHORT_WAIT = 0.15
"""Seconds of one receive call that cannot be interrupted, while other calls may want its link."""
LONG_WAIT = 5.0
"""Seconds of one receive call that cannot be interrupted, while nothing else is wanted."""
LONGEST_WAIT = 30.0
"""Seconds of one receive call: a cancelled receive may continue for so long."""
STALE_LIMIT = 3.0
"""Seconds below which a failed send counts as one on a link that was closed while idle."""
QUICK = 1.0
"""Seconds below which a failed receive counts as one that never had a working link."""

ENVELOPE = 1024
"""Maximum bytes of a message's ids and properties."""

_LOCKED_UNTIL = b"x-opt-locked-until"
_SEQUENCE_NUMBER = b"x-opt-sequence-number"
_ENQUEUED_AT = b"x-opt-enqueued-time"
"""Names of annotations. Their times are in milliseconds since the epoch."""

_UNUSED_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""A TLS context for links without TLS. Without it the SDK reads all of certifi for each link, in 20 ms."""


class _End(Closes, Generic[H]):
    """Our end of one link."""

    def __init__(self, link: SdkLink[H]) -> None:
        self._link = link

    @property
    def closed(self) -> bool:
        return self._link.closed

    async def aclose(self) -> None:
        await self._link.aclose()


class _Sender(_End["ServiceBusSender"]):
    def __init__(self, link: SdkLink[ServiceBusSender]) -> None:
        super().__init__(link)
        self._largest = 0

    async def open(self) -> Self:
        batch = await (await self._link.open()).create_message_batch()
        self._largest = batch.max_size_in_bytes
        return self

    async def send(self, *messages: OutgoingMessage) -> None:
        self._check_size(messages)
        sdks = [_outgoing(message) for message in messages]
        await self._twice_if_stale(lambda handler: handler.send_messages(sdks if len(sdks) > 1 else sdks[0]))

    async def schedule(self, message: OutgoingMessage, at: float) -> None:
        self._check_size((message,))
        when = datetime.fromtimestamp(at, UTC)
        await self._twice_if_stale(lambda handler: handler.schedule_messages(_outgoing(message), when))

    def _check_size(self, messages: Sequence[OutgoingMessage]) -> None:
        """Refuse a message that is too large: the broker would end the link with an unknown error."""
        size = sum(len(message.body) + ENVELOPE for message in messages)
        if size > self._largest:
            raise MessageTooLarge(
                f"message {messages[0].message_id} and {len(messages) - 1} more have {size} bytes; "
                f"{self._link.name} takes {self._largest}"
                if len(messages) > 1
                else f"message {messages[0].message_id} has {len(messages[0].body)} bytes; "
                f"{self._link.name} takes {self._largest - ENVELOPE}"
            )

    async def _twice_if_stale(self, work: Callable[[ServiceBusSender], Any]) -> None:
        """Send; send the same message once more on a new link when the broker had closed an idle one."""
        started = time.monotonic()
        try:
            await self._link.call(work, "cannot send")
        except BrokerError as error:
            if not _may_be_stale(error) or time.monotonic() - started > STALE_LIMIT:
                raise
            await self._link.call(work, "cannot send")


def _may_be_stale(error: BrokerError) -> bool:
    """Tell whether the broker closed an idle link, or the network cut it."""
    return error.retryable and not isinstance(error, Backpressure)


def _outgoing(message: OutgoingMessage) -> AmqpAnnotatedMessage:
    """Make the form that the SDK makes of a `ServiceBusMessage`, at half its cost."""
    properties = {"message_id": message.message_id}
    if message.session_id is not None:
        properties["group_id"] = message.session_id
    limit = message.time_to_live
    header = None if limit is None else {"time_to_live": round(limit * 1000)}
    return AmqpAnnotatedMessage(data_body=message.body, properties=properties, header=header)


class _Inbox(_End["ServiceBusReceiver"]):
    """The common part of receivers and mailboxes: receiving that is safe to cancel, and settling."""

    def __init__(self, link: SdkLink[ServiceBusReceiver]) -> None:
        super().__init__(link)
        self._held: dict[str, ServiceBusReceivedMessage] = {}
        self._pending: SdkCall[list[ServiceBusReceivedMessage]] | None = None

    async def _receive(self, max_wait: float) -> Delivery | None:
        clock = asyncio.get_running_loop().time
        until = clock() + max_wait
        while True:
            left = max(0.0, until - clock())
            if (call := self._pending) is None:
                work = _one(max(left, SHORT_WAIT), SHORT_WAIT if self._is_shared else LONG_WAIT)
                call = self._pending = await self._link.wait_for(work, "cannot receive")
            if not await call.wait(left):
                return None
            self._pending = None
            if messages := self._link.finish(call):
                return self._hold(messages[0])
            if clock() >= until:
                return None

    @property
    def _is_shared(self) -> bool:
        """Tell whether other calls may want the link during a receive: some message has to be settled."""
        return bool(self._held)

    def _hold(self, message: ServiceBusReceivedMessage) -> Delivery:
        annotations = message.raw_amqp_message.annotations
        locked_until = annotations.pop(_LOCKED_UNTIL, None) if annotations else None
        delivery = _delivery(message, None if locked_until is None else locked_until / 1000)
        self._held[delivery.lock_token] = message
        return delivery

    async def _settle(
        self,
        delivery: Delivery,
        work: Callable[[ServiceBusReceiver, ServiceBusReceivedMessage], Any],
        doing: str,
    ) -> None:
        message = self._held.get(delivery.lock_token)
        if message is None:
            raise LeaseLost(f"{doing}: message {delivery.message_id} is not held by {self._link.name}")
        try:
            await self._link.call(lambda handler: work(handler, message), doing)
        except LeaseLost:
            self._held.pop(delivery.lock_token, None)
            raise
        self._held.pop(delivery.lock_token, None)

    async def complete(self, delivery: Delivery) -> None:
        await self._settle(delivery, lambda sdk, message: sdk.complete_message(message), "cannot complete")


def _one(wait: float, uninterrupted: float) -> Callable[[ServiceBusReceiver, bool], Any]:
    """Return the next message. If other calls want the link, only one that has been read already.

    `wait`: seconds; `uninterrupted`: at most so many where the receive cannot be interrupted.
    """

    def receive(handler: ServiceBusReceiver, wanted: bool) -> Any:
        if not wanted and (reading := reading_of(handler)) is not None:
            return reading.receive(handler, min(wait, LONGEST_WAIT))
        return handler.receive_messages(1, max_wait_time=_NO_WAIT if wanted else min(wait, uninterrupted))

    return receive


def _delivery(message: ServiceBusReceivedMessage, locked_until: float | None) -> Delivery:
    annotations = message.raw_amqp_message.annotations or {}
    return Delivery(
        body=b"".join(message.body),
        message_id=str(message.message_id or ""),
        sequence_number=annotations.get(_SEQUENCE_NUMBER) or 0,
        delivery_count=message.delivery_count or 0,
        lock_token=str(message.lock_token),
        enqueued_at=(annotations.get(_ENQUEUED_AT) or 0) / 1000,
        session_id=message.session_id,
        dead_letter_reason=message.dead_letter_reason,
        dead_letter_description=message.dead_letter_error_description,
        locked_until=locked_until,
    )


class _Receiver(_Inbox):
    async def receive(self, max_wait: float) -> Delivery | None:
        """Receive; survive one lost link that can be reopened, but not one loss after the other."""
        until = time.monotonic() + max_wait
        patient = True
        while True:
            started = time.monotonic()
            try:
                return await self._receive(max(0.0, until - started))
            except BrokerError as error:
                if not patient or not _may_be_stale(error):
                    raise
            patient = time.monotonic() - started > QUICK
            await self._link.open()

    async def abandon(self, delivery: Delivery) -> None:
        await self._settle(delivery, lambda sdk, message: sdk.abandon_message(message), "cannot abandon")

    async def dead_letter(self, delivery: Delivery, reason: str, description: str) -> None:
        await self._settle(
            delivery,
            lambda sdk, message: sdk.dead_letter_message(
                message, reason=reason, error_description=description
            ),
            "cannot dead-letter",
        )

    async def renew(self, delivery: Delivery) -> None:
        message = self._held.get(delivery.lock_token)
        if message is None:
            raise LeaseLost(f"cannot renew: message {delivery.message_id} is not held by {self._link.name}")
        # The SDK notes the new end of the lock on what it renews, and would judge by it: so, on a copy.
        shadow = copy.copy(message)
        await self._link.call(lambda handler: handler.renew_message_lock(shadow), "cannot renew")

    async def aclose(self) -> None:
        call, self._pending = self._pending, None
        if call is not None and call.over and not call.cancelled:
            await self._give_back(call)
        await self._link.aclose()
        self._held.clear()

    async def _give_back(self, call: SdkCall[list[ServiceBusReceivedMessage]]) -> None:
        """Give back the messages that came after their receive had been cancelled."""
        try:
            for message in self._link.finish(call):
                await self.abandon(self._hold(message))
        except BrokerError:
            return  # its lock runs out


class _Mailbox(_Inbox):
    def __init__(self, link: SdkLink[ServiceBusReceiver], session_id: str) -> None:
        super().__init__(link)
        self.session_id = session_id
        self.locked_until: float | None = None

    @property
    def _is_shared(self) -> bool:
        """Return True: the session's lock is renewed, and its state written, at any time."""
        return True

    async def open(self, began: float) -> Self:
        """Open the link. `began`: when the opening did, by the machine's clock.

        Raises `LeaseLost` where the opening took longer than the lock lasts, and `BrokerError` where the
        machine's clock is so far ahead that the SDK would take every lock for expired.
        """
        handler = await self._link.open()
        until = handler.session.locked_until_utc
        self.locked_until = None if until is None else until.timestamp()
        now = time.time()
        if self.locked_until is None or (behind := now - self.locked_until) < 0:
            return self
        await self.aclose()
        if behind < (taken := now - began):
            raise LeaseLost(
                f"the lock of mailbox {self.session_id} ran out while it was opened, which took {taken:.1f} s"
            )
        raise BrokerError(
            f"the clock of this machine is at least {behind:.0f} s plus a lock's duration ahead of the "
            f"broker's, so that the lock of mailbox {self.session_id} looks expired: set the clock"
        )

    async def receive(self, max_wait: float) -> Delivery | None:
        return await self._own(self._receive(max_wait))

    async def complete(self, delivery: Delivery) -> None:
        await self._own(super().complete(delivery))

    async def renew(self) -> None:
        await self._on_session(lambda handler: handler.session.renew_lock(), "cannot renew the mailbox")

    async def get_state(self) -> bytes | None:
        state = await self._on_session(lambda handler: handler.session.get_state(), "cannot read the state")
        return None if state is None else bytes(state)

    async def set_state(self, state: bytes) -> None:
        await self._on_session(lambda handler: handler.session.set_state(state), "cannot write the state")

    async def _on_session(self, work: Callable[[ServiceBusReceiver], Any], doing: str) -> Any:
        return await self._own(self._link.call(work, doing))

    async def _own(self, awaitable: Awaitable[T]) -> T:
        """Translate an error. The session ends with its link, so any loss of the link loses the mailbox."""
        try:
            return await awaitable
        except (LeaseLost, Backpressure):
            raise
        except BrokerError as error:
            raise LeaseLost(f"mailbox {self.session_id} is lost: {error}", retryable=True) from error

    async def aclose(self) -> None:
        self._pending = None
        await self._link.aclose()
        self._held.clear()


class ServiceBusBroker(Closes):
    """Service Bus for a client or an agent.

    `namespaces` is the connection string of a whole one or, with a credential of Entra ID, its name, or
    several of them with blanks between them; `by_queue` has the connection strings of single queues (an
    agent's restricted keys), which win; None for a queue that the credential opens. `ca_file` holds
    certificates to trust besides the system's; `websockets` goes through port 443. `setting` is named by
    errors that this configuration causes.
    """

    def __init__(
        self,
        namespaces: str | None,
        identity: Credential | None = None,
        *,
        by_queue: Mapping[QueueRef, str | None] | None = None,
        ca_file: str | None = None,
        websockets: bool = False,
        setting: str | None = None,
    ) -> None:
        each = each_of(namespaces) if namespaces else []
        self._whole: dict[str, str | None] = (
            {namespace_of(one): one for one in each} if identity is None else dict.fromkeys(each)
        )
        self._identity = identity
        self._by_queue = dict(by_queue or {})
        self._ca_file = ca_file
        self._tls: ssl.SSLContext | None = None
        self._transport = TransportType.AmqpOverWebsocket if websockets else TransportType.Amqp
        self._setting = setting or f"servicebus.{'connection_string' if identity is None else 'namespace'}"
        self._open: set[_End[Any]] = set()

    async def sender(self, queue: QueueRef) -> _Sender:
        client = self._client(queue)
        link = SdkLink(lambda: patched(client.get_queue_sender(queue.entity)), queue.entity, self._setting)
        sender = _Sender(link)
        await self._opened(sender, link)
        return await sender.open()

    async def receiver(self, queue: QueueRef, *, prefetch: int = 0, dead_letters: bool = False) -> _Receiver:
        client = self._client(queue)
        sub_queue = ServiceBusSubQueue.DEAD_LETTER if dead_letters else None
        name = f"{queue.entity}, dead letters" if dead_letters else queue.entity

        def make() -> ServiceBusReceiver:
            return patched(
                client.get_queue_receiver(
                    queue.entity, sub_queue=sub_queue, prefetch_count=prefetch, socket_timeout=READ_SLICE
                )
            )

        link = SdkLink(make, name, self._setting)
        receiver = _Receiver(link)
        await self._opened(receiver, link)
        return receiver

    async def mailbox(self, queue: QueueRef, session_id: str, *, prefetch: int = 50) -> _Mailbox:
        client = self._client(queue)

        def make() -> ServiceBusReceiver:
            return patched(
                client.get_queue_receiver(
                    queue.entity, session_id=session_id, prefetch_count=prefetch, socket_timeout=READ_SLICE
                )
            )

        link = SdkLink(make, f"mailbox {session_id} of {queue.entity}", self._setting, once=True)
        mailbox, began = _Mailbox(link, session_id), time.time()
        try:
            await self._opened(mailbox, link)
        except QueueNotFound as error:
            missing = MailboxNotFound(str(error))
            missing.setting = error.setting
            raise missing from error
        return await mailbox.open(began)

    async def _opened(self, end: _End[Any], link: SdkLink[Any]) -> None:
        self._open = {each for each in self._open if not each.closed}
        try:
            await link.open()
        except BaseException:
            await link.aclose()
            raise
        self._open.add(end)

    def _client(self, queue: QueueRef) -> ServiceBusClient:
        connection_string = self._connection_string(queue)
        encrypted = connection_string is None or is_encrypted(connection_string)
        if self._ca_file is not None and self._tls is None and encrypted:
            self._tls = trusting(self._ca_file)
        options: dict[str, Any] = {
            "retry_total": 0,
            "try_timeout": ATTEMPT_LIMIT,
            "transport_type": self._transport,
            "ssl_context": self._tls if encrypted else _UNUSED_TLS,
        }
        if encrypted and (endpoint := endpoint_of(queue.namespace)) is not None:
            options["custom_endpoint_address"] = endpoint
        if connection_string is None:
            assert self._identity is not None
            return ServiceBusClient(host_of(queue.namespace), self._identity, **options)
        try:
            return ServiceBusClient.from_connection_string(connection_string, **options)
        except ValueError:
            raise ConfigurationError(malformed(self._setting)) from None

    def _connection_string(self, queue: QueueRef) -> str | None:
        """Return the connection string of the queue, or of its namespace; None: the credential opens it."""
        own = self._by_queue.get(queue)
        if own is not None or (self._identity is not None and queue in self._by_queue):
            return own
        if queue.namespace in self._whole:
            return self._whole[queue.namespace]
        raise ConfigurationError(
            f"there is no key for queue {queue.entity} of {queue.namespace}; {self._setting} is for "
            f"{', '.join(self._whole) or 'no namespace'}"
        )

    async def aclose(self) -> None:
        ends, self._open = self._open, set()
        await asyncio.gather(*(end.aclose() for end in ends))
