"""The rules by which agents and clients turn dead letters into outcomes.

Agents and sessions read the dead letters of a pool under peek-lock, a limited number at each look:

- Each task in a dead letter of a task queue gets a result that says why the broker gave up on it.
- A dead letter of a results queue is sent to its mailbox again, because no session received its outcomes.
- The letter is completed when the broker has accepted all of that. Two readers of one letter do no harm,
  because a session tells outcomes apart by uid.
- A letter that cannot be decoded stays in the queue, for an operator. So do the arguments of a dead task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from batchflow.errors import ConfigurationError, ProtocolError
from batchflow.model import Status
from batchflow.protocol import wire
from batchflow.protocol.layout import check_name
from batchflow.protocol.wire import ResultItem, TaskItem
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from batchflow.ports.broker import Delivery, Receiver

LOOK_INTERVAL: Final = 30.0
"""Seconds between two looks; the time between two may be half as long."""
JITTER: Final = 0.5
"""Share of the interval that is added by chance, at most, so that readers do not look all at once."""
LOOK_TIMEOUT: Final = 0.5
"""Seconds to wait for the next dead letter."""
MAX_LETTERS: Final = 100
"""Dead letters of one look."""
_LEAST_LIFE: Final = 0.001
_LONGEST_LIFE: Final = 4_294_967.0
"""Seconds that a message can be told to live: Service Bus counts milliseconds in 32 bits."""


_AGAIN: Final = "-again-"


def resent_id(sender: str, number: int) -> str:
    """Make the id of a dead letter of results that is sent again. The broker would drop its first id."""
    return f"{sender}{_AGAIN}{number}"


def is_resent(message_id: str) -> bool:
    """Return whether a message was a dead letter, so that its date is not that of its results."""
    return _AGAIN in message_id


async def letters(receiver: Receiver) -> AsyncIterator[Delivery]:
    """Receive the dead letters of one look: those that are in the queue, `MAX_LETTERS` at most."""
    for _ in range(MAX_LETTERS):
        letter = await receiver.receive(LOOK_TIMEOUT)
        if letter is None:
            return
        yield letter


async def seen(receiver: Receiver) -> list[Delivery]:
    """Return the dead letters of one look, and leave them in the queue, also where the look fails midway.

    Raises `BrokerError`.
    """
    held: list[Delivery] = []
    try:
        async for letter in letters(receiver):
            held.append(letter)  # noqa: PERF401 - what came before a failure is kept
    finally:
        for letter in held:
            await receiver.abandon(letter)
    return held


def time_to_live(seconds: float) -> float | None:
    """Return the seconds that a message is told to live whose tasks expire in `seconds`; None: any time.

    The broker dead-letters the message then. It knows no limit that is longer than 49 days.
    """
    return max(_LEAST_LIFE, seconds) if seconds < _LONGEST_LIFE else None


def read_tasks(body: bytes) -> list[TaskItem]:
    """Decode the tasks of a message. Raises `ProtocolError`, also for names that cannot get a result."""
    tasks = [item for item in wire.decode(body) if isinstance(item, TaskItem)]
    if not tasks:
        raise ProtocolError("a message in the task queue that holds no tasks")
    try:
        for job, client in {(task.job, task.client) for task in tasks}:
            check_name("job", job)
            check_name("client", client)
    except ConfigurationError as error:
        raise ProtocolError(f"a task that cannot be answered: {error}") from error
    return tasks


@frozen
class DeadLetterReason:
    """The reason why a letter is dead, as a failure of the tasks in it."""

    kind: str
    error: str

    def outcome(self, task: TaskItem) -> ResultItem:
        """Make the result of one of the tasks; it names no node."""
        return wire.result_of(task, status=Status.FAILED, host=None, error=self.error, kind=self.kind)


EXPIRED: Final = DeadLetterReason("TaskExpired", "it had not begun when the time of its `expires` was over")
"""The outcome of a task that was not begun in time."""


def reason_of(letter: Delivery, task: TaskItem, now: float) -> DeadLetterReason:
    """Translate the reason that the letter of a task carries. `now`: seconds since the epoch."""
    match letter.dead_letter_reason:
        case "MaxDeliveryCountExceeded":
            return DeadLetterReason(
                "TaskPoisoned", f"no agent got to the end of it in {letter.delivery_count} deliveries"
            )
        case "TTLExpiredException":
            if task.expires is not None:
                return EXPIRED
            age = max(0.0, now - letter.enqueued_at)
            return DeadLetterReason("TaskFailed", f"it expired in the queue, {age:.0f} s old, before it ran")
        case reason:
            told = f": {letter.dead_letter_description}" if letter.dead_letter_description else ""
            return DeadLetterReason(
                "TaskFailed", f"the broker gave up on it: {reason or 'no reason given'}{told}"
            )
