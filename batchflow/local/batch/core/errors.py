"""The refusals of the local Batch service: the service's published codes, their HTTP status, their words.

The table follows "Batch Status and Error Codes" of the REST reference. The body of every refusal has the
service's one shape: `{"code", "message": {"lang", "value"}, "values": [{"key", "value"}, ...]}`.
"""

from __future__ import annotations

from typing import Any

CODES: dict[str, tuple[int, str]] = {
    "ActiveJobAndScheduleQuotaReached": (
        409,
        "The Batch account has reached its quota of active jobs and job schedules.",
    ),
    "PermissionDenied": (
        403,
        "Server failed to authorize the request. Make sure that the caller has a role that permits it.",
    ),
    "AuthenticationFailed": (
        403,
        "Server failed to authenticate the request. Make sure the value of Authorization header is formed"
        " correctly including the signature.",
    ),
    "AutoScaleFormulaTooLong": (400, "The specified auto-scaling formula exceeds the maximum length."),
    "AutoScalingFormulaEvaluationError": (
        400,
        "The specified auto-scaling formula could not be evaluated.",
    ),
    "AutoScalingFormulaSyntaxError": (400, "The specified auto-scaling formula has a syntax error."),
    "ConditionNotMet": (412, "The condition specified using HTTP conditional header(s) is not met."),
    "FileNotFound": (404, "The specified file does not exist."),
    "InternalError": (500, "Server encountered an internal error. Please try again after some time."),
    "InvalidHeaderValue": (400, "The value for one of the HTTP headers is not in the correct format."),
    "InvalidPropertyValue": (
        400,
        "The value provided for one of the properties in the request body is invalid.",
    ),
    "InvalidQueryParameterValue": (
        400,
        "Value for one of the query parameters specified in the request URI is invalid.",
    ),
    "InvalidRange": (416, "The range specified is invalid for the current size of the resource."),
    "InvalidRequestBody": (400, "The specified Request Body is not syntactically valid."),
    "InvalidUri": (400, "The requested URI does not represent any resource on the server."),
    "JobBeingDeleted": (
        409,
        "The specified job has been marked for deletion and is being garbage collected.",
    ),
    "JobBeingTerminated": (409, "The specified job is being terminated."),
    "JobCompleted": (409, "The specified job is already in a completed state."),
    "JobDisabled": (409, "The specified job is disabled."),
    "JobExists": (409, "The specified job already exists."),
    "JobNotActive": (409, "The specified job is not in active state."),
    "JobNotFound": (404, "The specified job does not exist."),
    "MissingRequiredProperty": (400, "A required property was not specified in the request body."),
    "MissingRequiredQueryParameter": (400, "A required query parameter was not specified for this request."),
    "NodeAlreadyInTargetSchedulingState": (
        409,
        "The specified node is already in the target scheduling state.",
    ),
    "NodeBeingCreated": (409, "The specified node is being created."),
    "NodeBeingStarted": (409, "The specified node is being started."),
    "NodeBeingRebooted": (409, "The specified node is being rebooted."),
    "NodeBeingReimaged": (409, "The specified node is being reimaged."),
    "NodeNotFound": (404, "The specified node does not exist."),
    "NotImplemented": (501, "The local Batch service does not implement the requested operation."),
    "NotModified": (304, "The resource has not been modified."),
    "OperationInvalidForCurrentState": (
        409,
        "The specified operation is not valid for the current state of the resource.",
    ),
    "OperationNotValidOnNode": (409, "The specified operation is not valid on the node."),
    "OperationNotValidOnPool": (409, "The specified operation is not valid on the pool."),
    "OutOfRangeInput": (400, "One of the request inputs is out of range."),
    "OutOfRangeQueryParameterValue": (
        400,
        "A query parameter specified in the request URI is outside the permissible range.",
    ),
    "PoolBeingDeleted": (409, "The specified pool has been marked for deletion and is being reclaimed."),
    "PoolBeingResized": (409, "The specified pool is being resized."),
    "PoolExists": (409, "The specified pool already exists."),
    "PoolNotFound": (404, "The specified pool does not exist."),
    "PoolQuotaReached": (409, "The Batch account has reached its quota of pools."),
    "RequestBodyTooLarge": (413, "The size of the request body exceeds the maximum size permitted."),
    "TaskCompleted": (409, "The specified task is already in a completed state."),
    "TaskExists": (409, "The specified task already exists."),
    "TaskFilesUnavailable": (409, "The files of the specified task are unavailable."),
    "TaskNotCompleted": (409, "The specified task is not in a completed state."),
    "TaskNotFound": (404, "The specified task does not exist."),
    "TaskSucceeded": (409, "The specified task has already completed successfully."),
    "TooManyEnableAutoScaleRequests": (
        503,
        "Too many Enable Pool AutoScale requests are issued on the pool.",
    ),
    "UnsupportedHttpVerb": (405, "The resource doesn't support the specified HTTP verb."),
    "UnsupportedQueryParameter": (
        400,
        "One of the query parameters specified in the request URI is not supported.",
    ),
    "UnsupportedRequestVersion": (400, "The specified request version is not supported."),
}


class Refused(Exception):
    """A request that the service refuses, with the code it gives and what the caller needs to know."""

    def __init__(self, code: str, **values: object) -> None:
        super().__init__(code, values)
        self.code = code
        self.status, self.message = CODES[code]
        self.values = {key: str(value) for key, value in values.items()}

    def body(self) -> dict[str, Any]:
        """Return the wire's error document."""
        document: dict[str, Any] = {
            "code": self.code,
            "message": {"lang": "en-US", "value": self.message},
        }
        if self.values:
            document["values"] = [{"key": key, "value": value} for key, value in self.values.items()]
        return document


def invalid_property(name: str, value: object, reason: str) -> Refused:
    """Make the error for a property of the body whose value the service refuses."""
    return Refused("InvalidPropertyValue", PropertyName=name, PropertyValue=value, Reason=reason)


def invalid_query(name: str, value: object, reason: str) -> Refused:
    """Make the error for a query parameter whose value the service refuses."""
    return Refused(
        "InvalidQueryParameterValue", QueryParameterName=name, QueryParameterValue=value, Reason=reason
    )


def not_implemented(what: str) -> Refused:
    """Refuse an operation that Azure Batch has and the local service has not."""
    return Refused("NotImplemented", Operation=what)
