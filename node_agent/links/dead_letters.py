"""What the broker gave up on still ends in an outcome: dead letters become results.

Every agent looks into the dead letters of its task queues now and then, by the rules of
`protocol.dead_letters`. Those of the results queues are the clients' matter: agents may not read them.
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
from batchflow.protocol.dead_letters import read_tasks, reason_of
from node_agent.links.closing import close
from node_agent.scheduling.events import Verdict

if TYPE_CHECKING:
    from batchflow.ports.broker import Broker, Delivery, QueueRef, Receiver

logger = logging.getLogger(__name__)

INTERVAL: Final = 30.0
"""Seconds between two looks, by chance up to half as long again."""
_LOOK: Final = 0.5
_MOST_LETTERS: Final = 100
"""At one look."""
_RESULT_TIMEOUT: Final = 60.0


class DeadLetterHandler:
    """Empties the dead letters of one task queue."""

    def __init__(
        self,
        broker: Broker,
        queue: QueueRef,
        send: Callable[[int, wire.TaskItem, Verdict], None],
        numbers: Iterator[int],
        interval: float = INTERVAL,
    ) -> None:
        """`send` sends a result under one of the `numbers`; `accepted` is to be called with it when the
        broker has it."""
        self._broker = broker
        self._queue = queue
        self._send = send
        self._interval = interval
        self._numbers = numbers
        self._awaited: dict[int, asyncio.Event] = {}
        self._unreadable: set[int] = set()

    def accepted(self, number: int) -> None:
        """The broker has this result."""
        if (event := self._awaited.pop(number, None)) is not None:
            event.set()

    async def run(self) -> None:
        """Look now and then, for ever. Between two looks it takes none of the namespace's connections."""
        while True:
            await anyio.sleep(self._interval * random.uniform(1.0, 1.5))
            receiver: Receiver | None = None
            try:
                receiver = await self._broker.receiver(self._queue, dead_letters=True)
                await self.look(receiver)
            except (BrokerError, TimeoutError) as error:
                logger.warning("janitor_failed", extra={"queue": self._queue.entity, "error": str(error)})
            finally:
                await close(receiver)

    async def look(self, receiver: Receiver) -> None:
        """Deal with the letters that are there."""
        for _ in range(_MOST_LETTERS):
            letter = await receiver.receive(_LOOK)
            if letter is None:
                return
            if letter.sequence_number not in self._unreadable:
                await self._deal_with(receiver, letter)

    async def _deal_with(self, receiver: Receiver, letter: Delivery) -> None:
        try:
            tasks = read_tasks(letter.body)
        except ProtocolError as error:
            self._unreadable.add(letter.sequence_number)
            logger.error(
                "dead_letter_unreadable", extra={"message_id": letter.message_id, "error": str(error)}
            )
            return
        verdict = verdict_on(letter, time.time())
        logger.warning(
            "dead_letter", extra={"uids": [item.uid for item in tasks[:20]], "error": verdict.error}
        )
        events = [self._send_result(item, verdict) for item in tasks]
        with anyio.fail_after(_RESULT_TIMEOUT):
            for event in events:
                await event.wait()
        await receiver.complete(letter)

    def _send_result(self, item: wire.TaskItem, verdict: Verdict) -> asyncio.Event:
        number = next(self._numbers)
        event = self._awaited[number] = asyncio.Event()
        self._send(number, item, verdict)
        return event


def verdict_on(letter: Delivery, now: float) -> Verdict:
    """Why the broker gave up on it; `now`: seconds since the epoch."""
    death = reason_of(letter, now)
    return Verdict(Status.FAILED, death.kind, death.error)
