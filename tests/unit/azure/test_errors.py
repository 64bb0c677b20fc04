"""Every error that the Azure SDKs know has a meaning in ours."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import warnings

import pytest
from azure.core.exceptions import (
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
    ServiceRequestError,
)
from azure.servicebus import exceptions as bus

from batchflow.azure.errors import BY_CLASS, broker_error, meaning_of, pool_error, storage_error
from batchflow.errors import (
    Backpressure,
    BlobConflict,
    BlobNotFound,
    BrokerError,
    LeaseLost,
    MailboxInUse,
    MessageTooLarge,
    PoolError,
    PoolExists,
    QueueNotFound,
    StorageError,
)

SDKS = ("azure.core", "azure.servicebus", "azure.storage.blob", "azure.batch")

OUT_OF_REACH = {
    "azure.core.exceptions.ODataV4Error": "for other services, and HttpResponseError besides",
    "azure.core.pipeline.transport._base_async._ResponseStopIteration": "never leaves the transport",
    "azure.storage.blob._shared.avro.avro_io.SchemaResolutionException": "reading of change feeds",
    "azure.storage.blob._shared.avro.datafile.DataFileException": "reading of change feeds",
    "azure.storage.blob._shared.avro.schema.AvroException": "reading of change feeds",
    "azure.storage.blob._shared.avro.schema.Error": "reading of change feeds",
    "azure.storage.blob._shared.avro.schema.SchemaParseException": "reading of change feeds",
}


def exception_classes(package: str) -> set[type[BaseException]]:
    found: set[type[BaseException]] = set()
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(root.__path__, package + "."):
        try:
            names = vars(importlib.import_module(module.name)).values()
        except ImportError:  # for an optional dependency that is not here
            continue
        found.update(
            each
            for each in names
            if inspect.isclass(each)
            and issubclass(each, BaseException)
            and each.__module__.startswith(package)
        )
    return found


def full_name(kind: type[BaseException]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@pytest.mark.parametrize("package", SDKS)
def test_every_class_has_a_meaning(package: str) -> None:
    """No class of error of an SDK is missing in the table; those judged by their status aside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classes = exception_classes(package)
    assert classes
    for kind in classes:
        name = full_name(kind)
        if name in OUT_OF_REACH or name == full_name(HttpResponseError):
            continue
        listed = {full_name(base) for base in kind.__mro__} & BY_CLASS.keys()
        assert listed or issubclass(kind, HttpResponseError), f"{name} is not in the table"


def test_no_entry_is_stale() -> None:
    """Every class that the table names exists."""
    for name in BY_CLASS:
        module, _, kind = name.rpartition(".")
        assert inspect.isclass(getattr(importlib.import_module(module), kind)), name


@pytest.mark.parametrize(
    ("error", "kind", "retryable", "setting"),
    [
        (bus.MessageLockLostError(), LeaseLost, False, None),
        (bus.SessionLockLostError(), LeaseLost, False, None),
        (bus.MessageAlreadySettled(action="complete"), LeaseLost, False, None),
        (bus.SessionCannotBeLockedError(), MailboxInUse, True, None),
        (bus.MessagingEntityNotFoundError(), QueueNotFound, False, "S"),
        (bus.MessageSizeExceededError(), MessageTooLarge, False, None),
        (bus.ServiceBusServerBusyError(), Backpressure, True, None),
        (bus.ServiceBusQuotaExceededError(), Backpressure, True, None),
        (bus.ServiceBusAuthenticationError(), BrokerError, False, "S"),
        (bus.ServiceBusAuthorizationError(), BrokerError, False, "S"),
        (bus.ServiceBusConnectionError(), BrokerError, True, "S"),
        (bus.OperationTimeoutError(), BrokerError, True, "S"),
        (bus.ServiceBusError("odd"), BrokerError, False, None),
        (bus.ServiceBusError("wrapped", error=AttributeError("gone")), BrokerError, True, None),
        (ServiceRequestError("cannot connect", error=OSError()), BrokerError, True, "S"),
    ],
)
def test_service_bus(error: Exception, kind: type[BrokerError], retryable: bool, setting: str | None) -> None:
    """Each error of Service Bus is of our class, says whether to try again, and names a setting at fault."""
    ours = broker_error(error, "doing", "S")
    assert (type(ours), ours.retryable, ours.setting) == (kind, retryable, setting)
    assert str(ours).startswith("doing: ")


class Answer:
    """As much of a response as the SDK's errors look at."""

    def __init__(self, status: int) -> None:
        self.status_code = status
        self.reason = "reason"
        self.headers: dict[str, str] = {}


def http_error(
    status: int, code: str | None = None, kind: type[HttpResponseError] = HttpResponseError
) -> HttpResponseError:
    error = kind(message="first line\nsecond line")
    error.status_code = status
    if code is not None:
        error.error_code = code  # type: ignore[attr-defined]  # the SDK sets it, and declares it nowhere
    return error


@pytest.mark.parametrize(
    ("error", "kind", "retryable"),
    [
        (http_error(404, "BlobNotFound", ResourceNotFoundError), BlobNotFound, False),
        (http_error(404, None, ResourceNotFoundError), BlobNotFound, False),
        (http_error(409, "BlobAlreadyExists", ResourceExistsError), BlobConflict, False),
        (http_error(409, "ContainerBeingDeleted", ResourceExistsError), BlobConflict, True),
        (http_error(412, "ConditionNotMet"), BlobConflict, False),
        (http_error(403, "AuthenticationFailed"), StorageError, False),
        (http_error(503, "ServerBusy"), StorageError, True),
        (http_error(500), StorageError, True),
        (http_error(418), StorageError, False),
    ],
)
def test_storage(error: Exception, kind: type[Exception], retryable: bool) -> None:
    """Each error of Blob Storage is of our class and says whether to try again."""
    ours = storage_error(error, "doing", "S")
    assert (type(ours), ours.retryable) == (kind, retryable)
    assert "second line" not in str(ours)


@pytest.mark.parametrize(
    ("error", "kind", "retryable"),
    [
        (http_error(409, "PoolExists", ResourceExistsError), PoolExists, False),
        (http_error(409, "PoolBeingDeleted", ResourceExistsError), PoolExists, True),
        (http_error(409, "PoolBeingResized", ResourceExistsError), PoolError, True),
        (http_error(404, "JobNotFound", ResourceNotFoundError), PoolError, False),
        (http_error(429), PoolError, True),
        (http_error(503, "ServerBusy"), PoolError, True),
    ],
)
def test_batch(error: Exception, kind: type[Exception], retryable: bool) -> None:
    """Each error of Batch is of our class and says whether to try again."""
    ours = pool_error(error, "doing", "S")
    assert (type(ours), ours.retryable) == (kind, retryable)


def test_a_refused_signature_is_not_quoted() -> None:
    """Of a refused signature nothing is told but that it was refused, and which setting holds the key."""
    error = http_error(403, "AuthenticationFailed")
    error.message = "Server failed to authenticate. The MAC signature 'c2VjcmV0' is not the same"
    ours = storage_error(error, "doing", "storage.connection_string")
    assert "c2VjcmV0" not in str(ours)
    assert ours.setting == "storage.connection_string"


def test_unknown_error() -> None:
    """An error that no table knows is of the service's own class, with its words."""
    assert meaning_of(KeyError("odd")) is None
    assert str(broker_error(KeyError("odd"), "doing")) == "doing: 'odd'"
