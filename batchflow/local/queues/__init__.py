"""The queues of Service Bus: what happens to messages, as a core with the clock passed in."""

from batchflow.local.queues.model import (
    Draft,
    LockLost,
    LostSession,
    Message,
    MessageNotFound,
    MessageSizeExceeded,
    NotAllowed,
    Place,
    QueueCounts,
    QueueFull,
    QueueProperties,
    QueueRefusal,
    SessionCannotBeLocked,
    SessionLock,
    SessionLockLost,
)
from batchflow.local.queues.queue import Queue, counting_tokens

__all__ = [
    "Draft",
    "LockLost",
    "LostSession",
    "Message",
    "MessageNotFound",
    "MessageSizeExceeded",
    "NotAllowed",
    "Place",
    "Queue",
    "QueueCounts",
    "QueueFull",
    "QueueProperties",
    "QueueRefusal",
    "SessionCannotBeLocked",
    "SessionLock",
    "SessionLockLost",
    "counting_tokens",
]
