"""What a client does about an error of the broker: the one table for links, mailboxes and dead letters."""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from batchflow.errors import (
    Backpressure,
    BrokerError,
    LeaseLost,
    MailboxInUse,
    MailboxNotFound,
    MessageTooLarge,
    QueueNotFound,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


class Recovery(enum.Enum):
    """What follows from an error."""

    RETRY = "retry"
    """Make the same call again, after a wait: the error passes."""
    REOPEN = "reopen"
    """Open the mailbox or the link again: the lock is lost, and what it locked is delivered again."""
    END = "end"
    """Give up: another call fails in the same way."""


BY_CLASS: Final[Mapping[type[BrokerError], Recovery]] = MappingProxyType(
    {
        Backpressure: Recovery.RETRY,
        LeaseLost: Recovery.REOPEN,
        MailboxNotFound: Recovery.END,
        MessageTooLarge: Recovery.END,
        QueueNotFound: Recovery.END,
    }
)
"""By the class alone, whatever `retryable` says. A lost lock passes, but no call succeeds with it."""

BY_RETRYABLE: Final = frozenset({BrokerError, MailboxInUse})
"""Classes whose errors are retried if they are `retryable`. `MailboxInUse` is not, once another took over."""


def recovery_of(error: BrokerError) -> Recovery:
    """Return what to do about an error: by its class, or by its `retryable`."""
    for kind in type(error).__mro__:
        if kind in BY_RETRYABLE:
            break
        if kind in BY_CLASS:
            return BY_CLASS[kind]
    return Recovery.RETRY if error.retryable else Recovery.END
