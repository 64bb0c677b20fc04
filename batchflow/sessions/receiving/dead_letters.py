"""Turns the dead letters of a pool into outcomes, also when no agent lives.

A session looks into the dead letters of its pool's queues when it opens, and now and then while it waits for
outcomes, by the rules of `protocol.dead_letters`. It does so for all clients. A session that may not read a
queue's dead letters, or send results, leaves them to other clients.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Final

from batchflow.errors import BrokerError, ConfigurationError, ProtocolError, StorageError
from batchflow.ports.broker import OutgoingMessage, QueueRef
from batchflow.protocol import wire
from batchflow.protocol.dead_letters import (
    JITTER,
    LOOK_INTERVAL,
    DeadLetterReason,
    letters,
    read_tasks,
    reason_of,
    resent_id,
)
from batchflow.protocol.failed_tasks import FailedTask
from batchflow.protocol.layout import queue_for
from batchflow.support.cadence import sleep_until_turn
from batchflow.support.closing import Closes
from batchflow.support.event_log import event_logger
from batchflow.support.recovery import Recovery, recovery_of
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchflow.pools.runtime import PoolRuntime
    from batchflow.ports.broker import Delivery, Sender
    from batchflow.sessions.records.context import SessionContext

logger = event_logger(__name__)

_FIRST: Final = 2.0
"""Seconds from the opening to the first look, so that the look does not delay the first tasks."""

_MOST_KEPT: Final = 20
"""Tasks of a dead letter that are kept."""


class DeadLetterHandler:
    """Empties the dead letters of a pool's queues."""

    def __init__(self, context: SessionContext) -> None:
        self._context = context
        self._runtime = context.runtime
        self._closed: set[QueueRef] = set()
        """Queues whose dead letters this session has no right to handle."""
        self._unreadable: set[tuple[QueueRef, int]] = set()

    async def run(self) -> None:
        """Look when the session has opened, and again for as long as it waits for outcomes."""
        await asyncio.sleep(_FIRST)
        await self.look()
        while True:
            await sleep_until_turn(LOOK_INTERVAL)
            if len(self._context.tracker):
                await asyncio.sleep(LOOK_INTERVAL * random.uniform(0.0, JITTER))
                await self.look()

    async def look(self) -> None:
        """Handle the dead letters that are there now."""
        manifest = self._runtime.manifest
        await self._look_into((*manifest.task_queues, *manifest.results_queues))

    async def look_for_tasks(self) -> None:
        """Handle the dead letters of the task queues that are there now."""
        await self._look_into(self._runtime.manifest.task_queues)

    async def _look_into(self, queues: Sequence[QueueRef]) -> None:
        manifest = self._runtime.manifest
        for queue in queues:
            if queue not in self._closed and await self._anything_dead(queue):
                try:
                    await self._empty(queue, tasks=queue in manifest.task_queues)
                except BrokerError as error:
                    if recovery_of(error) is Recovery.END:
                        self._closed.add(queue)
                    logger.info("dead_letters_failed", extra={"queue": queue.entity, "error": str(error)})

    async def _anything_dead(self, queue: QueueRef) -> bool:
        """Return whether a queue may have dead letters; true when the broker does not say."""
        try:
            admin = self._runtime.connections.admin_of(queue)
            figures = await admin.figures(queue.entity)
        except (BrokerError, ConfigurationError):
            return True
        return figures.dead > 0

    async def _empty(self, queue: QueueRef, *, tasks: bool) -> None:
        dealt_with, kinds = 0, list[str]()
        receiver = await self._runtime.connections.broker.receiver(queue, dead_letters=True)
        async with receiver, _ResultLinks(self._runtime) as links:
            async for message in letters(receiver):
                failed = await self._deal_with(queue, message, links, tasks=tasks)
                if failed is not None:
                    await receiver.complete(message)
                    dealt_with += 1
                    kinds += [each.kind for each in failed]
        if dealt_with:
            telemetry = self._context.telemetry
            if telemetry is not None and telemetry.meters is not None:
                telemetry.meters.letters(self._runtime.pool_id, kinds)
            what = "of tasks became results" if tasks else "of results were sent again"
            self._context.notices.inform(f"{dealt_with} dead letters {what}")

    async def _deal_with(
        self, queue: QueueRef, message: Delivery, links: _ResultLinks, *, tasks: bool
    ) -> list[FailedTask] | None:
        """Send what stands in for a dead letter. Return its tasks; None while the broker lacks some."""
        if (queue, message.sequence_number) in self._unreadable:
            return None
        try:
            failed = _failed_tasks(message) if tasks else []
            outgoing = map(_failure_result, failed) if tasks else [self._resend(message)]
        except ProtocolError as error:
            self._unreadable.add((queue, message.sequence_number))
            extra = {"message_id": message.message_id, "error": str(error)}
            logger.error("dead_letter_unreadable", extra=extra)
            return None
        for each in outgoing:
            await links.send(each)
        async with task_group() as group:
            for task in failed[:_MOST_KEPT]:
                group.start_soon(self._keep, task)
        return failed

    async def _keep(self, failed: FailedTask) -> None:
        """Keep a task of a dead letter, so that `batchflow replay` finds it."""
        try:
            await self._runtime.ctl.put(failed.blob, failed.encode())
        except StorageError as error:
            logger.info("failed_task_not_kept", extra={"uid": failed.task.uid, "error": str(error)})

    def _resend(self, message: Delivery) -> OutgoingMessage:
        """Return the message under another id: the broker would drop the first id as a duplicate."""
        wire.decode(message.body)
        message_id = resent_id(self._context.incarnation, message.sequence_number)
        return OutgoingMessage(message.body, message_id, session_id=message.session_id)


def _failed_tasks(message: Delivery) -> list[FailedTask]:
    """Return the tasks of a dead letter, and why it is dead. Raises `ProtocolError`."""
    now = time.time()
    reasons = [(task, reason_of(message, task, now)) for task in read_tasks(message.body)]
    return [FailedTask(task, reason.kind, reason.error, None, now) for task, reason in reasons]


def _failure_result(failed: FailedTask) -> OutgoingMessage:
    """Make the result of a task, in a message of its own: a tag may be as large as a task."""
    task = failed.task
    body = wire.join("results", [wire.encode(DeadLetterReason(failed.kind, failed.error).outcome(task))])
    return OutgoingMessage(body, f"dead-{task.uid}-{task.attempt}-{task.hop}", session_id=task.mailbox)


class _ResultLinks(Closes):
    """The links to the results queues, for one look. Each is opened when it is needed."""

    def __init__(self, runtime: PoolRuntime) -> None:
        self._broker = runtime.connections.broker
        self._queues = runtime.manifest.results_queues
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
