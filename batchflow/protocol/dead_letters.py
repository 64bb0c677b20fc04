"""What the broker gave up on still ends in an outcome: the decision that agents and clients share.

Rules, for whoever looks into the dead letters of a pool, which he does under peek-lock:

- Each task in a dead letter of a task queue gets a result that says why the broker gave up on it.
- A dead letter of a results queue goes to its mailbox once more: its outcomes were told to nobody.
- The letter is removed when the broker has all of that. Two who look at one letter do no harm, for outcomes
  are told apart by uid.
- A letter that cannot be read stays where it is, for people; so do the arguments that a dead task refers to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchflow.errors import ConfigurationError, ProtocolError
from batchflow.model import Status
from batchflow.protocol import wire
from batchflow.protocol.layout import check_name
from batchflow.protocol.wire import ResultItem, TaskItem
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from batchflow.ports.broker import Delivery


def read_tasks(body: bytes) -> list[TaskItem]:
    """The tasks of a message. Raises `ProtocolError`, also for names that could not be answered to."""
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
    """Why a letter is dead, as a failure of the tasks in it."""

    kind: str
    error: str

    def outcome(self, task: TaskItem) -> ResultItem:
        """The result of one of the tasks, which no node gave."""
        return wire.result_of(task, status=Status.FAILED, host=None, error=self.error, kind=self.kind)


def reason_of(letter: Delivery, now: float) -> DeadLetterReason:
    """By the reason that the broker, or whoever dead-lettered it, gave. `now`: seconds since the epoch."""
    match letter.dead_letter_reason:
        case "MaxDeliveryCountExceeded":
            return DeadLetterReason(
                "TaskPoisoned", f"no agent got to the end of it in {letter.delivery_count} deliveries"
            )
        case "TTLExpiredException":
            age = max(0.0, now - letter.enqueued_at)
            return DeadLetterReason("TaskFailed", f"it expired in the queue, {age:.0f} s old, before it ran")
        case reason:
            told = f": {letter.dead_letter_description}" if letter.dead_letter_description else ""
            return DeadLetterReason(
                "TaskFailed", f"the broker gave up on it: {reason or 'no reason given'}{told}"
            )
