"""The queues of Service Bus: what happens to messages, as a core with the clock passed in."""

from batchflow.local.queues.model import (
    Counts,
    Draft,
    LockLost,
    LostSession,
    Message,
    MessageNotFound,
    MessageTooLarge,
    NotAllowed,
    Place,
    QueueFull,
    QueueRefusal,
    QueueSpec,
    SessionCannotBeLocked,
    SessionLock,
    SessionLockLost,
)
from batchflow.local.queues.queue import Queue, counting_tokens

__all__ = [
    "Counts",
    "Draft",
    "LockLost",
    "LostSession",
    "Message",
    "MessageNotFound",
    "MessageTooLarge",
    "NotAllowed",
    "Place",
    "Queue",
    "QueueFull",
    "QueueRefusal",
    "QueueSpec",
    "SessionCannotBeLocked",
    "SessionLock",
    "SessionLockLost",
    "counting_tokens",
]
