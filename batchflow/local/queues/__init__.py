"""The queues of Service Bus: what happens to messages, as a core with the clock passed in."""

from batchflow.local.queues.model import (
    Draft,
    LockLost,
    LostSession,
    Message,
    MessageCounts,
    MessageNotFound,
    MessageSizeExceeded,
    NotAllowed,
    Place,
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
    "MessageCounts",
    "MessageNotFound",
    "MessageSizeExceeded",
    "NotAllowed",
    "Place",
    "Queue",
    "QueueFull",
    "QueueProperties",
    "QueueRefusal",
    "SessionCannotBeLocked",
    "SessionLock",
    "SessionLockLost",
    "counting_tokens",
]
