"""A task queue as an agent uses it: messages in, renewals, completions, copies of tasks handed back.

One owner for each link: `receive` for the receiver's waiting, `copy` for the sender of copies. Settling and
renewing may be done at any time.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from anyio import CancelScope

from batchflow.errors import BrokerError, LeaseLost, ProtocolError
from batchflow.ports.broker import OutgoingMessage
from batchflow.protocol import wire
from batchflow.protocol.dead_letters import read_tasks, time_to_live
from batchflow.protocol.packing import ENVELOPE, MOST_BYTES, MOST_SENT
from batchflow.support.backoff import Backoff, until_accepted
from batchflow.support.closing import close_shielded
from node_agent.system.task_fields import tasks_fields

if TYPE_CHECKING:
    from batchflow.ports.broker import Broker, Delivery, QueueRef, Receiver, Sender
    from node_agent.links.broker_clock import BrokerClock
    from node_agent.links.problem_report import ProblemReport

logger = logging.getLogger(__name__)

LONGEST_WAIT: Final = 60.0
"""Seconds of one call of `receive`."""
LAST_LOOK: Final = 2.0
RENEW_TIMEOUT: Final = 20.0


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """A task that is handed back: not before `delay` seconds from now."""

    task: int
    item: wire.TaskItem
    delay: float
    message: OutgoingMessage = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", copy_message(self.item))


class TaskQueue:
    """One of the agent's task queues."""

    def __init__(
        self,
        broker: Broker,
        queue: QueueRef,
        clock: BrokerClock,
        problems: ProblemReport,
        *,
        arrived: Callable[[TaskQueue, Delivery, list[wire.TaskItem]], None],
        nothing_left: Callable[[], None],
        copied: Callable[[int, bool], None],
        opened: Callable[[], None],
    ) -> None:
        self._broker = broker
        self._queue = queue
        self._clock = clock
        self._problems = problems
        self._arrived = arrived
        self._nothing_left = nothing_left
        self._copied = copied
        self._opened = opened
        self._receiver: Receiver | None = None
        self._wanted = asyncio.Event()
        self._last_look = False
        self._waiting: CancelScope | None = None
        self._copies: asyncio.Queue[Copy] = asyncio.Queue()
        self._following: Copy | None = None
        """Taken from these, and not for the send that was being made ready."""

    def pull(self, wanted: bool) -> None:
        """Set whether messages are wanted.

        A receive that is under way continues and may return one more message. The broker has the credit for
        it, and would lock the message for us anyway.
        """
        self._last_look = False
        if wanted:
            self._wanted.set()
        else:
            self._wanted.clear()

    def look_once_more(self) -> None:
        """Receive for a moment, even if nothing is wanted; call `nothing_left` when no message came."""
        self._last_look = True
        self._wanted.set()
        if self._waiting is not None:
            self._waiting.cancel()

    async def receive(self) -> None:
        """Receive while messages are wanted, until cancelled."""
        backoff = Backoff()
        try:
            while True:
                while not self._wanted.is_set():  # may be cleared again before this coroutine goes on
                    await self._wanted.wait()
                try:
                    await self._receive_one()
                except BrokerError as error:
                    self._failed(error)
                    await backoff.wait()
                else:
                    backoff.reset()
                    if self._problems.end(self._problem):
                        logger.info("receive_recovered", extra={"queue": self._queue.entity})
        finally:
            await close_shielded(self._receiver)

    async def _receive_one(self) -> None:
        receiver = await self._open()
        looking = self._last_look
        delivery = None
        with CancelScope() as self._waiting:
            delivery = await receiver.receive(LAST_LOOK if looking else LONGEST_WAIT)
        interrupted, self._waiting = self._waiting.cancel_called, None
        if delivery is not None:
            self._clock.seen(delivery.enqueued_at)
            await self._read(receiver, delivery)
        elif looking and self._last_look and not interrupted:
            self._last_look = False
            self._wanted.clear()
            self._nothing_left()

    async def _open(self) -> Receiver:
        if self._receiver is None:
            self._receiver = await self._broker.receiver(self._queue)
            self._opened()
        return self._receiver

    async def _read(self, receiver: Receiver, delivery: Delivery) -> None:
        """Decode a message. One that cannot be decoded is dead-lettered, and the agent continues."""
        try:
            tasks = read_tasks(delivery.body)
        except ProtocolError as error:
            logger.error(
                "message_refused",
                extra={"message_id": delivery.message_id, "error": str(error), "bytes": len(delivery.body)},
            )
            await receiver.dead_letter(delivery, "MessageUnreadable", str(error)[:1024])
        else:
            self._arrived(self, delivery, tasks)

    def _failed(self, error: BrokerError) -> None:
        if self._problems.begin(self._problem, f"tasks cannot be received: {error}"):
            logger.warning("receive_failed", extra={"queue": self._queue.entity, "error": str(error)})

    @property
    def _problem(self) -> str:
        return f"tasks {self._queue.entity}"

    @property
    def _copy_problem(self) -> str:
        return f"copies {self._queue.entity}"

    async def renew(self, delivery: Delivery) -> None:
        """Renew the lock of a message. Raises `LeaseLost`, another `BrokerError`, or TimeoutError."""
        assert self._receiver is not None
        async with asyncio.timeout(RENEW_TIMEOUT):
            await self._receiver.renew(delivery)

    async def complete(self, delivery: Delivery, still_ours: Callable[[], bool]) -> bool:
        """Complete a message, with retries; return False when its lock is lost."""
        assert self._receiver is not None
        backoff = Backoff()
        while still_ours():
            try:
                await self._receiver.complete(delivery)
            except LeaseLost:
                return False
            except BrokerError as error:
                logger.warning(
                    "complete_failed", extra={"message_id": delivery.message_id, "error": str(error)}
                )
                await backoff.wait()
            else:
                return True
        return False

    def hand_back(self, copy: Copy) -> None:
        """Queue a copy. `copied` is called with its task and whether the broker accepted it."""
        self._copies.put_nowait(copy)

    async def copy(self) -> None:
        """Send the copies that are handed back, until cancelled."""
        sender: Sender | None = None
        try:
            while True:
                copies = await self._next_copies()
                if sender is None:
                    sender = await self._open_sender()
                accepted = await self._send(sender, copies)
                for copy in copies:
                    self._copied(copy.task, accepted)
        finally:
            await close_shielded(sender)

    async def _next_copies(self) -> list[Copy]:
        """Return one delayed copy, or the copies that may leave now and fit into one send."""
        first, self._following = self._following or await self._copies.get(), None
        copies, size = [first], _size(first)
        while not first.delay and len(copies) < MOST_SENT and not self._copies.empty():
            following = self._copies.get_nowait()
            size += _size(following)
            if following.delay or size > MOST_BYTES:
                self._following = following
                break
            copies.append(following)
        return copies

    async def _open_sender(self) -> Sender:
        return await until_accepted(lambda: self._broker.sender(self._queue), self._copies_failed)

    async def _send(self, sender: Sender, copies: list[Copy]) -> bool:
        """Send until the broker accepts the copies; return False when it refuses them for good."""
        messages = [copy.message for copy in copies]
        delay = copies[0].delay
        at = self._clock.broker_time(time.time()) + delay

        def failed(error: BrokerError) -> None:
            if not error.retryable:
                raise error
            self._copies_failed(error)

        def send() -> Awaitable[None]:
            return sender.schedule(messages[0], at) if delay > 0 else sender.send(*messages)

        try:
            await until_accepted(send, failed)
        except BrokerError as error:
            named = tasks_fields([copy.item for copy in copies])
            logger.error("copy_refused", extra={**named, "error": str(error)})
            return False
        self._problems.end(self._copy_problem)
        return True

    def _copies_failed(self, error: BrokerError) -> None:
        self._problems.begin(self._copy_problem, f"tasks cannot be handed back: {error}")


def _size(copy: Copy) -> int:
    return len(copy.message.body) + ENVELOPE


def copy_message(item: wire.TaskItem) -> OutgoingMessage:
    """Make the message of a task that is handed back. The same hop always gets the same message id."""
    name = f"{item.uid} {item.attempt} {item.hop}"
    message_id = hashlib.sha256(name.encode()).hexdigest()[:32]
    limit = None if item.expires is None else time_to_live(item.expires)
    return OutgoingMessage(wire.join("tasks", [wire.encode(item)]), message_id, time_to_live=limit)
