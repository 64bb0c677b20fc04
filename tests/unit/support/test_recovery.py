"""What follows from each error of the broker."""

from __future__ import annotations

import pytest

from batchflow import errors
from batchflow.errors import BrokerError
from batchflow.support.recovery import Recovery, recovery_of

RETRY, REOPEN, END = Recovery.RETRY, Recovery.REOPEN, Recovery.END
TABLE = {
    "BrokerError": (RETRY, END),
    "LeaseLost": (REOPEN, REOPEN),
    "MailboxInUse": (RETRY, END),
    "MailboxNotFound": (END, END),
    "QueueNotFound": (END, END),
    "MessageTooLarge": (END, END),
    "Backpressure": (RETRY, RETRY),
    "NoAgents": (RETRY, END),
}
"""By the class: what follows when it is retryable, and when it is not."""


@pytest.mark.parametrize(
    "kind", [BrokerError, *(each for each in vars(errors).values() if isinstance(each, type))]
)
def test_each_error_has_its_recovery(kind: type[Exception]) -> None:
    """Also one that is added later: it needs a line in the table."""
    if not issubclass(kind, BrokerError):
        return
    found = tuple(recovery_of(kind("x", retryable=retryable)) for retryable in (True, False))
    assert found == TABLE[kind.__name__]
