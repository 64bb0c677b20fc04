"""Dead letters of the task queues become results, by the rules of `protocol.dead_letters`.

Every agent reads the dead letters of its task queues from time to time. It may not read those of the results
queues; clients do.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import anyio

from batchflow.errors import BrokerError, ProtocolError
from batchflow.model import Status
from batchflow.protocol import wire
from batchflow.protocol.dead_letters import JITTER, LOOK_INTERVAL, letters, read_tasks, reason_of
from batchflow.support.closing import close_shielded
from node_agent.scheduling.events import Verdict
from node_agent.system.task_fields import tasks_fields

if TYPE_CHECKING:
    from batchflow.ports.broker import Broker, Delivery, QueueRef, Receiver

logger = logging.getLogger(__name__)

_RESULT_TIMEOUT: Final = 60.0
"""Maximum number of seconds to wait until the broker accepts the results of one dead letter."""


class DeadLetterHandler:
    """Empties the dead-letter queue of one task queue."""

    def __init__(
        self,
        broker: Broker,
        queue: QueueRef,
        send: Callable[[int, wire.TaskItem, Verdict], None],
        numbers: Iterator[int],
        interval: float = LOOK_INTERVAL,
    ) -> None:
        """`send` sends a result under one of the `numbers`.

        `accepted` is called with that number when the broker has the result.
        """
        self._broker = broker
        self._queue = queue
        self._send = send
        self._interval = interval
        self._numbers = numbers
        self._awaited: dict[int, asyncio.Event] = {}
        self._unreadable: set[int] = set()

    def accepted(self, number: int) -> None:
        """Record that the broker has accepted this result."""
        if (event := self._awaited.pop(number, None)) is not None:
            event.set()

    async def run(self) -> None:
        """Read the dead letters from time to time.

        No connection stays open between two reads, because the number of connections is limited.
        """
        while True:
            await anyio.sleep(self._interval * random.uniform(1.0, 1.0 + JITTER))
            receiver: Receiver | None = None
            try:
                receiver = await self._broker.receiver(self._queue, dead_letters=True)
                await self.look(receiver)
            except (BrokerError, TimeoutError) as error:
                logger.warning(
                    "dead_letters_failed", extra={"queue": self._queue.entity, "error": str(error)}
                )
            finally:
                await close_shielded(receiver)

    async def look(self, receiver: Receiver) -> None:
        """Turn the dead letters that are in the queue into results."""
        async for letter in letters(receiver):
            if letter.sequence_number not in self._unreadable:
                await self._handle(receiver, letter)

    async def _handle(self, receiver: Receiver, letter: Delivery) -> None:
        try:
            tasks = read_tasks(letter.body)
        except ProtocolError as error:
            self._unreadable.add(letter.sequence_number)
            logger.error(
                "dead_letter_unreadable", extra={"message_id": letter.message_id, "error": str(error)}
            )
            return
        now = time.time()
        verdicts = [verdict_on(letter, item, now) for item in tasks]
        logger.warning("dead_letter", extra={**tasks_fields(tasks), "error": verdicts[0].error})
        events = [self._send_result(item, verdict) for item, verdict in zip(tasks, verdicts, strict=True)]
        with anyio.fail_after(_RESULT_TIMEOUT):
            for event in events:
                await event.wait()
        await receiver.complete(letter)

    def _send_result(self, item: wire.TaskItem, verdict: Verdict) -> asyncio.Event:
        number = next(self._numbers)
        event = self._awaited[number] = asyncio.Event()
        self._send(number, item, verdict)
        return event


def verdict_on(letter: Delivery, item: wire.TaskItem, now: float) -> Verdict:
    """Translate the reason that the dead letter of a task carries; `now`: seconds since the epoch."""
    reason = reason_of(letter, item, now)
    return Verdict(Status.FAILED, reason.kind, reason.error)
