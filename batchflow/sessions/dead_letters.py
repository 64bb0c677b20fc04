"""What the broker gave up on still ends in an outcome, though no agent ever comes back.

A session looks into the dead letters of its pool's queues when it opens, and now and then while it waits for
outcomes, by the rules of `protocol.dead_letters`: for all clients, as far as its rights go. Whoever may not
read a queue's dead letters, or send results, leaves them to others.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, Final

from batchflow.errors import BrokerError, ConfigurationError, ProtocolError
from batchflow.ports.broker import OutgoingMessage, QueueRef
from batchflow.protocol import wire
from batchflow.protocol.dead_letters import JITTER, LOOK_INTERVAL, letters, read_tasks, reason_of
from batchflow.protocol.layout import queue_for
from batchflow.support.closing import Closes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchflow.ports.broker import Delivery, Sender
    from batchflow.session import Session

logger = logging.getLogger(__name__)

_FIRST: Final = 2.0
"""Seconds after the opening, so that it is in nobody's way."""


class DeadLetterHandler:
    """Empties the dead letters of a pool's queues."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._broker = session.pool.runtime.connections.broker
        self._closed: set[QueueRef] = set()
        """Queues whose dead letters are not ours to deal with."""
        self._unreadable: set[tuple[QueueRef, int]] = set()

    async def run(self) -> None:
        """Look when the session has opened, and again for as long as it waits for outcomes."""
        await asyncio.sleep(_FIRST)
        await self.look()
        while True:
            await asyncio.sleep(LOOK_INTERVAL * random.uniform(1.0, 1.0 + JITTER))
            if len(self._session._tracker):
                await self.look()

    async def look(self) -> None:
        """Deal with the letters that are there."""
        manifest = self._session.pool.runtime.manifest
        for queue in (*manifest.task_queues, *manifest.results_queues):
            if queue not in self._closed and await self._anything_dead(queue):
                try:
                    await self._empty(queue, tasks=queue in manifest.task_queues)
                except BrokerError as error:
                    if not error.retryable:
                        self._closed.add(queue)
                    logger.info("dead_letters_failed", extra={"queue": queue.entity, "error": str(error)})

    async def _anything_dead(self, queue: QueueRef) -> bool:
        """Also where that cannot be asked: looking tells."""
        try:
            admin = self._session.pool.runtime.connections.admin_of(queue)
            figures = await admin.figures(queue.entity)
        except (BrokerError, ConfigurationError):
            return True
        return figures.dead > 0

    async def _empty(self, queue: QueueRef, *, tasks: bool) -> None:
        dealt_with = 0
        receiver = await self._broker.receiver(queue, dead_letters=True)
        async with receiver, _ResultLinks(self._session) as post:
            async for letter in letters(receiver):
                if await self._deal_with(queue, letter, post, tasks=tasks):
                    await receiver.complete(letter)
                    dealt_with += 1
        if dealt_with:
            what = "of tasks became results" if tasks else "of results were sent again"
            self._session._inform(f"{dealt_with} dead letters {what}")

    async def _deal_with(self, queue: QueueRef, letter: Delivery, post: _ResultLinks, *, tasks: bool) -> bool:
        """Whether the broker has all that the letter stands for."""
        if (queue, letter.sequence_number) in self._unreadable:
            return False
        try:
            messages = list(self._obituaries(letter) if tasks else self._once_more(letter))
        except ProtocolError as error:
            self._unreadable.add((queue, letter.sequence_number))
            extra = {"message_id": letter.message_id, "error": str(error)}
            logger.error("dead_letter_unreadable", extra=extra)
            return False
        for message in messages:
            await post.send(message)
        return True

    def _obituaries(self, letter: Delivery) -> Iterator[OutgoingMessage]:
        """A result for each task, in a message of its own: a tag may be as large as a task."""
        death = reason_of(letter, time.time())
        for task in read_tasks(letter.body):
            body = wire.join("results", [wire.encode(death.outcome(task))])
            message_id = f"dead-{task.uid}-{task.attempt}-{task.hop}"
            yield OutgoingMessage(body, message_id, session_id=task.mailbox)

    def _once_more(self, letter: Delivery) -> Iterator[OutgoingMessage]:
        """Under another id, for the broker remembers the first one."""
        wire.decode(letter.body)
        message_id = f"{self._session.incarnation}-again-{letter.sequence_number}"
        yield OutgoingMessage(letter.body, message_id, session_id=letter.session_id)


class _ResultLinks(Closes):
    """The links to the results queues, each opened when it is needed, for one look."""

    def __init__(self, session: Session) -> None:
        self._broker = session.pool.runtime.connections.broker
        self._queues = session.pool.runtime.manifest.results_queues
        self._senders: dict[QueueRef, Sender] = {}

    async def send(self, message: OutgoingMessage) -> None:
        assert message.session_id is not None
        queue = queue_for(self._queues, message.session_id)
        if queue not in self._senders:
            self._senders[queue] = await self._broker.sender(queue)
        await self._senders[queue].send(message)

    async def aclose(self) -> None:
        for sender in self._senders.values():
            await sender.aclose()
