"""The dead letters of a pool's task queues: what is in them and why, and how to run them again."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any, Final

from batchflow.errors import ProtocolError
from batchflow.ports.broker import OutgoingMessage
from batchflow.protocol.dead_letters import letters, read_tasks, reason_of, resent_id, seen

if TYPE_CHECKING:
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.ports.broker import Delivery

_MOST_TASKS: Final = 20
"""Tasks of one letter that are told."""


async def dead_letters(runtime: PoolRuntime) -> list[dict[str, Any]]:
    """Return what the letters hold, without taking them. Raises `BrokerError`."""
    found: list[dict[str, Any]] = []
    for queue in runtime.manifest.task_queues:
        receiver = await runtime.connections.broker.receiver(queue, dead_letters=True)
        async with receiver:
            held = await seen(receiver)
        found += [_view(queue.entity, letter) for letter in held]
    return found


async def replay(runtime: PoolRuntime, queue_name: str, number: int) -> bool:
    """Send a letter to its queue again, so that its tasks run; return False when it is not there any more.

    It leaves the dead letters when the broker has the copy. Raises `BrokerError`, `ProtocolError` for a
    letter that holds no tasks. Cancelled in between, the letter stays, and its tasks may run twice.
    """
    for queue in runtime.manifest.task_queues:
        if queue.entity != queue_name:
            continue
        receiver = await runtime.connections.broker.receiver(queue, dead_letters=True)
        async with receiver:
            held: list[Delivery] = []
            try:
                async for letter in letters(receiver):
                    held.append(letter)  # noqa: PERF401 - what came before a failure is kept
                wanted = [letter for letter in held if letter.sequence_number == number]
                for letter in wanted:
                    read_tasks(letter.body)
                    sender = await runtime.connections.broker.sender(queue)
                    try:
                        message_id = resent_id(f"dash-{secrets.token_hex(4)}", letter.sequence_number)
                        await sender.send(OutgoingMessage(letter.body, message_id))
                    finally:
                        await sender.aclose()
                    await receiver.complete(letter)
                    held.remove(letter)
            finally:
                for letter in held:
                    await receiver.abandon(letter)
            return bool(wanted)
    return False


def _view(queue: str, letter: Delivery) -> dict[str, Any]:
    try:
        tasks = read_tasks(letter.body)
        reason = reason_of(letter, tasks[0], time.time()).error
        rows = [[task.uid, task.task_id, task.command, task.mailbox] for task in tasks[:_MOST_TASKS]]
    except ProtocolError as error:
        tasks, rows, reason = [], [], f"it cannot be read: {error}"
    return {
        "queue": queue,
        "number": letter.sequence_number,
        "at": letter.enqueued_at,
        "reason": reason,
        "count": len(tasks),
        "tasks": rows,
    }
