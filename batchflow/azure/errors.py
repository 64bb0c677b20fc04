"""One table that translates the errors of the Azure SDKs into ours.

An error is looked up by its most telling sign: first the code that the service sent (`PoolExists`,
`BlobNotFound`), then the classes of the exception from the most to the least derived, then the HTTP status.
Classes stand here by name, so that reading this table imports no SDK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from batchflow.errors import (
    AllocationFailed,
    Backpressure,
    BlobConflict,
    BlobNotFound,
    BrokerError,
    LeaseLost,
    MailboxInUse,
    MessageTooLarge,
    PoolError,
    PoolExists,
    PoolNotFound,
    QueueNotFound,
    QuotaExceeded,
    ServiceError,
    StorageError,
)
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

_E = TypeVar("_E", bound=ServiceError)


@frozen
class Meaning:
    """The translation of an SDK's error."""

    kind: type[ServiceError] = ServiceError
    """The class of our error; `ServiceError`: the base class of the service that was called."""
    retryable: bool = False
    blames_setting: bool = False
    """Whether the connection string, key or URL that the user configured is the likely cause."""
    remedy: str = ""


_FAULT = Meaning()
_TRANSIENT = Meaning(retryable=True)
_BUSY = Meaning(Backpressure, retryable=True)
_LOST = Meaning(LeaseLost)
_UNREACHABLE = Meaning(
    retryable=True, blames_setting=True, remedy="check the address, and that this machine can reach it"
)
_DENIED = Meaning(
    blames_setting=True, remedy="check the key, or the role in Entra ID, and that it has the right to do this"
)
_NO_BLOB = Meaning(BlobNotFound)
_CONFLICT = Meaning(BlobConflict)
_QUOTA = Meaning(QuotaExceeded, remedy="free some, or ask Azure for more")

BY_CLASS: Mapping[str, Meaning] = {
    "azure.servicebus.exceptions.AutoLockRenewFailed": _LOST,
    "azure.servicebus.exceptions.AutoLockRenewTimeout": _LOST,
    "azure.servicebus.exceptions.MessageAlreadySettled": _LOST,
    "azure.servicebus.exceptions.MessageLockLostError": _LOST,
    "azure.servicebus.exceptions.MessageNotFoundError": _LOST,
    "azure.servicebus.exceptions.MessageSizeExceededError": Meaning(MessageTooLarge),
    "azure.servicebus.exceptions.MessagingEntityAlreadyExistsError": _FAULT,
    "azure.servicebus.exceptions.MessagingEntityDisabledError": Meaning(
        remedy="enable the queue in the Azure portal"
    ),
    "azure.servicebus.exceptions.MessagingEntityNotFoundError": Meaning(
        QueueNotFound,
        blames_setting=True,
        remedy="check the namespace; where it is the pool's, client.ensure_pool() makes its queues anew",
    ),
    "azure.servicebus.exceptions.OperationTimeoutError": _UNREACHABLE,
    "azure.servicebus.exceptions.ServiceBusAuthenticationError": _DENIED,
    "azure.servicebus.exceptions.ServiceBusAuthorizationError": _DENIED,
    "azure.servicebus.exceptions.ServiceBusCommunicationError": _UNREACHABLE,
    "azure.servicebus.exceptions.ServiceBusConnectionError": _UNREACHABLE,
    "azure.servicebus.exceptions.ServiceBusError": _FAULT,
    "azure.servicebus.exceptions.ServiceBusQuotaExceededError": _BUSY,
    "azure.servicebus.exceptions.ServiceBusServerBusyError": _BUSY,
    "azure.servicebus.exceptions.SessionCannotBeLockedError": Meaning(MailboxInUse, retryable=True),
    "azure.servicebus.exceptions.SessionLockLostError": _LOST,
    "azure.servicebus._pyamqp.error.AMQPException": _TRANSIENT,
    "azure.servicebus._pyamqp.error.AuthenticationException": _DENIED,
    "azure.servicebus._pyamqp._message_backcompat.MessageAlreadySettled": _LOST,
    "azure.servicebus._pyamqp._transport.UnexpectedFrame": _TRANSIENT,
    "azure.core.exceptions.AzureError": _FAULT,
    "azure.core.exceptions.ClientAuthenticationError": _DENIED,
    "azure.core.exceptions.DecodeError": _FAULT,
    "azure.core.exceptions.DeserializationError": _FAULT,
    "azure.core.exceptions.IncompleteReadError": _TRANSIENT,
    "azure.core.exceptions.ResourceExistsError": _CONFLICT,
    "azure.core.exceptions.ResourceModifiedError": _CONFLICT,
    "azure.core.exceptions.ResourceNotFoundError": _NO_BLOB,
    "azure.core.exceptions.ResourceNotModifiedError": _CONFLICT,
    "azure.core.exceptions.ResponseNotReadError": _FAULT,
    "azure.core.exceptions.SerializationError": _FAULT,
    "azure.core.exceptions.ServiceRequestError": _UNREACHABLE,
    "azure.core.exceptions.ServiceResponseError": _TRANSIENT,
    "azure.core.exceptions.StreamClosedError": _FAULT,
    "azure.core.exceptions.StreamConsumedError": _FAULT,
    "azure.core.exceptions.TooManyRedirectsError": _UNREACHABLE,
    "azure.core.polling.base_polling.BadResponse": _FAULT,
    "azure.core.polling.base_polling.BadStatus": _FAULT,
    "azure.core.polling.base_polling.OperationFailed": _FAULT,
    "azure.batch.models._patch.CreateTasksError": _FAULT,
    "azure.storage.blob._shared.authentication.AzureSigningError": _DENIED,
    "aiohttp.client_exceptions.ClientError": _TRANSIENT,
    "builtins.TimeoutError": _TRANSIENT,
    "builtins.OSError": _UNREACHABLE,
    "builtins.ValueError": _FAULT,
    "builtins.TypeError": _FAULT,
    "builtins.AttributeError": _TRANSIENT,
    "builtins.RuntimeError": _TRANSIENT,
}
"""Translations by the full name of the SDK's class. The Service Bus SDK raises the last two when its
connection is lost during an operation."""

BY_CODE: Mapping[str, Meaning] = {
    "AccountIsDisabled": _DENIED,
    "AuthenticationFailed": _DENIED,
    "AuthorizationFailure": _DENIED,
    "AuthorizationPermissionMismatch": _DENIED,
    "InsufficientAccountPermissions": _DENIED,
    "InvalidAuthenticationInfo": _DENIED,
    "NoAuthenticationInformation": _DENIED,
    "PermissionDenied": _DENIED,
    "InternalError": _TRANSIENT,
    "OperationTimedOut": _TRANSIENT,
    "ServerBusy": _TRANSIENT,
    "TooManyRequests": _TRANSIENT,
    "AppendPositionConditionNotMet": _CONFLICT,
    "BlobAlreadyExists": _CONFLICT,
    "BlobNotFound": _NO_BLOB,
    "ConditionNotMet": _CONFLICT,
    "ContainerAlreadyExists": _CONFLICT,
    "ContainerBeingDeleted": Meaning(BlobConflict, retryable=True),
    "ContainerNotFound": _NO_BLOB,
    "InvalidBlobType": _CONFLICT,
    "LeaseIdMissing": _CONFLICT,
    "TargetConditionNotMet": _CONFLICT,
    "UnauthorizedBlobOverwrite": _CONFLICT,
    "AccountCoreQuotaReached": _QUOTA,
    "AccountLowPriorityCoreQuotaReached": _QUOTA,
    "AccountSpotCoreQuotaReached": _QUOTA,
    "AccountVMSeriesCoreQuotaReached": _QUOTA,
    "ActiveJobAndScheduleQuotaReached": _QUOTA,
    "AllocationFailed": Meaning(AllocationFailed, retryable=True),
    "AllocationTimedout": Meaning(AllocationFailed, retryable=True),
    "AllocationTimedOut": Meaning(AllocationFailed, retryable=True),
    "PoolBeingDeleted": Meaning(PoolExists, retryable=True, remedy="wait until the old pool is gone"),
    "PoolBeingResized": Meaning(PoolError, retryable=True),
    "PoolExists": Meaning(PoolExists),
    "PoolNotFound": Meaning(PoolNotFound),
    "PoolQuotaReached": _QUOTA,
}
"""Translations by the code in the service's answer."""

_JUDGED_BY_STATUS = "azure.core.exceptions.HttpResponseError"
"""The class that says nothing by itself: the answer's HTTP status decides."""

BY_STATUS: Mapping[int, Meaning] = {
    401: _DENIED,
    403: _DENIED,
    404: _NO_BLOB,
    408: _TRANSIENT,
    409: _CONFLICT,
    412: _CONFLICT,
    429: _BUSY,
    500: _TRANSIENT,
    502: _TRANSIENT,
    503: _BUSY,
    504: _TRANSIENT,
}


def broker_error(error: BaseException, doing: str, setting: str | None = None) -> BrokerError:
    """Translate an error of the Service Bus SDK, met while `doing`; to be raised from `error`."""
    return _translated(error, BrokerError, doing, setting)


def storage_error(error: BaseException, doing: str, setting: str | None = None) -> StorageError:
    """Translate an error of the Blob SDK, met while `doing`; to be raised from `error`."""
    return _translated(error, StorageError, doing, setting)


def pool_error(
    error: BaseException, doing: str, setting: str | None = None, address: str | None = None
) -> PoolError:
    """Translate an error of the Batch SDK, met while `doing`; to be raised from `error`.

    `setting` names the key, `address` the setting that is at fault when nothing answers.
    """
    at_fault = address if meaning_of(error) is _UNREACHABLE else setting
    return _translated(error, PoolError, doing, at_fault)


def meaning_of(error: BaseException) -> Meaning | None:
    """Return the entry of the table that fits best; None when there is none."""
    if type(error).__name__ == "ServiceBusError" and code_of(error) is None:
        error = getattr(error, "inner_exception", None) or error  # in a wrapper that says nothing
    return BY_CODE.get(code_of(error) or "") or _by_class(type(error)) or _by_status(error)


def code_of(error: BaseException) -> str | None:
    """Return the service's own code for the error, such as `PoolExists`."""
    for holder in (error, getattr(error, "error", None), getattr(error, "model", None)):
        for name in ("error_code", "code"):
            code = getattr(holder, name, None)
            if code:
                return str(getattr(code, "value", code))
    return None


def _by_class(kind: type[BaseException]) -> Meaning | None:
    for base in kind.__mro__:
        name = f"{base.__module__}.{base.__qualname__}"
        if name == _JUDGED_BY_STATUS:
            return None
        if name in BY_CLASS:
            return BY_CLASS[name]
    return None


def _by_status(error: BaseException) -> Meaning | None:
    status = getattr(error, "status_code", None)
    if not isinstance(status, int):
        return None
    return BY_STATUS.get(status, _FAULT)


def _translated(error: BaseException, base: type[_E], doing: str, setting: str | None) -> _E:
    meaning = meaning_of(error) or _FAULT
    kind = meaning.kind if issubclass(meaning.kind, base) else base
    text = f"{doing}: {what_of(error)}"
    if meaning is _UNREACHABLE:
        text += _proxy_at_fault(text)
    if meaning.remedy:
        text = f"{text}; {meaning.remedy}"
    return kind(text, retryable=meaning.retryable, setting=setting if meaning.blames_setting else None)


def _proxy_at_fault(text: str) -> str:
    """Tell when the address that is not reached is not the service's but a proxy's."""
    from urllib.parse import urlsplit

    from batchflow.azure.transport import proxies

    for kind, url in proxies().items():
        proxy = urlsplit(url if "://" in url else f"//{url}")
        try:
            where = f"host {proxy.hostname}:{proxy.port} "
        except ValueError:
            continue  # a port that is none, of which aiohttp tells
        if proxy.hostname and where in text:
            return f"; that is the proxy of {kind.upper()}_PROXY, which NO_PROXY can except hosts from"
    return ""


def what_of(error: BaseException) -> str:
    """Return the SDK's text in one line; for a bad signature only the code, because the text quotes it."""
    code = code_of(error)
    if code == "AuthenticationFailed":
        return code
    lines = str(getattr(error, "message", None) or error).strip().splitlines()
    first = lines[0][:300].rstrip(". ") if lines else type(error).__name__
    return f"{code}: {first}" if code and code not in first else first
