"""The services of the model: a task queue, a results queue, a container of blobs; and who listens to them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from batchflow.errors import BlobConflict, BlobNotFound, BrokerError, LeaseLost, MailboxInUse, ServiceError
from batchflow.local import queues as core
from batchflow.ports.broker import Delivery, QueueSpec


class Listener(Protocol):
    """Who waits until something holds."""

    def wakes(self) -> bool:
        """Whether it holds."""

    def wake(self) -> None: ...


class Signal:
    """Tells its listeners to look again."""

    __slots__ = ("listeners",)

    def __init__(self) -> None:
        self.listeners: dict[Listener, None] = {}

    def give(self) -> None:
        for listener in [listener for listener in self.listeners if listener.wakes()]:
            listener.wake()


@dataclass(slots=True)
class Blobs:
    """A container: values with versions."""

    _blobs: dict[str, tuple[Any, int]] = field(default_factory=dict)
    _version: int = 0

    def __iter__(self) -> Any:
        return iter(self._blobs)

    def get(self, name: str) -> tuple[Any, int]:
        """The value and its version. Raises `BlobNotFound`."""
        if name not in self._blobs:
            raise BlobNotFound(f"there is no blob {name}")
        return self._blobs[name]

    def put(self, name: str, value: Any, if_match: int | None = None) -> int:
        """Its new version. Raises `BlobNotFound` and `BlobConflict` for a version that is not there."""
        if if_match is not None and self.get(name)[1] != if_match:
            raise BlobConflict(f"blob {name} was changed")
        self._version += 1
        self._blobs[name] = (value, self._version)
        return self._version

    def delete(self, name: str) -> None:
        self._blobs.pop(name, None)


class Cloud:
    """What everybody talks to."""

    def __init__(
        self, lock: float, time_to_live: float | None, max_delivery_count: int, max_mail_count: int
    ) -> None:
        self.lock = lock
        tasks = QueueSpec(
            "tasks", lock_duration=lock, time_to_live=time_to_live, max_delivery_count=max_delivery_count
        )
        self.tasks = _queue(tasks)
        results = QueueSpec("results", sessions=True, lock_duration=lock, max_delivery_count=max_mail_count)
        self.results = _queue(results)
        self.blobs = Blobs()
        self.tasks_come = Signal()
        self.results_come: defaultdict[str, Signal] = defaultdict(Signal)
        """By mailbox: given when something came, and when its lock was lost."""

    @property
    def empty(self) -> bool:
        return not any(self.tasks.counts) and not any(self.results.counts)

    @property
    def dead_tasks(self) -> core.Queue:
        assert self.tasks.dead_letters is not None
        return self.tasks.dead_letters

    @property
    def dead_results(self) -> core.Queue:
        assert self.results.dead_letters is not None
        return self.results.dead_letters

    def send_tasks(self, drafts: Sequence[core.Draft], now: float) -> None:
        self.tasks.send(drafts, now)
        self.tasks_come.give()

    def send_result(self, draft: core.Draft, now: float) -> None:
        self.results.send([draft], now)
        assert draft.session_id is not None
        self.results_come[draft.session_id].give()

    def release_mailbox(self, mailbox: str, holder: Hashable, now: float) -> None:
        self.results.release_session(mailbox, holder, now)

    def next_deadline(self) -> float:
        moments = (self.tasks.next_deadline(), self.results.next_deadline())
        return min((moment for moment in moments if moment is not None), default=math.inf)

    def advance(self, now: float) -> None:
        self.tasks.advance(now)
        if self.tasks.has_ready():
            self.tasks_come.give()
        for lost in self.results.advance(now):
            self.results_come[lost.session_id].give()


def _queue(spec: QueueSpec) -> core.Queue:
    return core.Queue(
        core.QueueProperties(
            lock_duration=spec.lock_duration,
            max_delivery_count=spec.max_delivery_count,
            requires_session=spec.sessions,
            default_ttl=spec.time_to_live,
            dead_letter_on_expiration=True,
            duplicate_window=spec.duplicate_window,
        )
    )


def as_delivery(message: core.Message) -> Delivery:
    """As the adaptors hand it on."""
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


def translated(refusal: Exception) -> ServiceError:
    """As the adaptors translate it; what is no refusal of a service is raised."""
    match refusal:
        case ServiceError():
            return refusal
        case core.LockLost() | core.SessionLockLost():
            return LeaseLost(str(refusal))
        case core.SessionCannotBeLocked():
            return MailboxInUse(str(refusal), retryable=True)
        case core.QueueRefusal():
            return BrokerError(str(refusal))
        case _:
            raise refusal
