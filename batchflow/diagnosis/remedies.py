"""Failures of services as causes, each with the remedy that goes with its kind."""

from __future__ import annotations

from typing import Final

from batchflow.errors import (
    Backpressure,
    MailboxInUse,
    NoAgents,
    PoolError,
    QueueNotFound,
    QuotaExceeded,
    ServiceError,
    StorageError,
)
from batchflow.model import Cause

_SERVICES: Final[tuple[tuple[type[ServiceError], str], ...]] = (
    (PoolError, "Batch"),
    (StorageError, "Blob Storage"),
    (ServiceError, "Service Bus"),
)
_GROUPS: Final = {"Batch": "[batch]", "Blob Storage": "[storage]", "Service Bus": "[servicebus]"}
_REMEDIES: Final[tuple[tuple[type[ServiceError], str], ...]] = (
    (Backpressure, "submit more slowly, let larger tasks ride, or take the Premium tier of Service Bus"),
    (MailboxInUse, "take another session name, or close the holder and wait for a lock duration"),
    (QueueNotFound, "delete the pool and make it anew: its queue is gone"),
    (QuotaExceeded, "raise the account's quota, or delete pools and jobs that are not needed"),
    (NoAgents, "see what follows"),
)


def service_of(error: ServiceError) -> str:
    """Return the name of the service that failed."""
    return next(name for kind, name in _SERVICES if isinstance(error, kind))


def problem_cause(error: ServiceError) -> Cause:
    """Return a failure as a cause, with the remedy of its kind, or of what led to it."""
    for kind, remedy in _REMEDIES:
        if isinstance(error, kind) or isinstance(error.__cause__, kind):
            return Cause(str(error), remedy, "slow" if error.retryable else "blocking")
    if error.setting is not None:
        return Cause(str(error), f"check the setting {error.setting}: its key may lack the right")
    return Cause(str(error), "it is tried again" if error.retryable else "see what follows")


def unanswered_cause(error: ServiceError) -> Cause:
    """Make the cause that says that a service did not answer."""
    service = service_of(error)
    what = f"{service} cannot be asked: {error}"
    for kind, remedy in _REMEDIES:
        if isinstance(error, kind):
            return Cause(what, remedy, "slow" if error.retryable else "blocking")
    setting = error.setting or _GROUPS[service]
    remedy = f"check the setting {setting}: what it names may be wrong, or its key may lack the right"
    return Cause(what, remedy, "note" if service == "Service Bus" else "blocking")
