"""The refusals of the Blob service: status, error code and message, as Azure Storage words them.

The codes and their statuses are those of the service's published table of error codes.
"""

from __future__ import annotations

from enum import Enum


class BlobErrorCode(Enum):
    """One error code of the service: its HTTP status, its name on the wire and its usual message."""

    APPEND_POSITION_CONDITION_NOT_MET = (
        412,
        "AppendPositionConditionNotMet",
        "The append position condition specified was not met.",
    )
    AUTHENTICATION_FAILED = (
        403,
        "AuthenticationFailed",
        "Server failed to authenticate the request. Make sure the value of Authorization header is formed "
        "correctly including the signature.",
    )
    AUTHORIZATION_PERMISSION_MISMATCH = (
        403,
        "AuthorizationPermissionMismatch",
        "This request is not authorized to perform this operation using this permission.",
    )
    AUTHORIZATION_PROTOCOL_MISMATCH = (
        403,
        "AuthorizationProtocolMismatch",
        "This request is not authorized to perform this operation using this protocol.",
    )
    AUTHORIZATION_RESOURCE_TYPE_MISMATCH = (
        403,
        "AuthorizationResourceTypeMismatch",
        "This request is not authorized to perform this operation using this resource type.",
    )
    AUTHORIZATION_SERVICE_MISMATCH = (
        403,
        "AuthorizationServiceMismatch",
        "This request is not authorized to perform this operation using this service.",
    )
    AUTHORIZATION_SOURCE_IP_MISMATCH = (
        403,
        "AuthorizationSourceIPMismatch",
        "This request is not authorized to perform this operation using this source IP.",
    )
    BLOB_ALREADY_EXISTS = (409, "BlobAlreadyExists", "The specified blob already exists.")
    BLOB_NOT_FOUND = (404, "BlobNotFound", "The specified blob does not exist.")
    BLOCK_COUNT_EXCEEDS_LIMIT = (
        409,
        "BlockCountExceedsLimit",
        "The committed block count cannot exceed the maximum limit of 50,000 blocks.",
    )
    BLOCK_LIST_TOO_LONG = (400, "BlockListTooLong", "The block list may not contain more than 50,000 blocks.")
    CONDITION_NOT_MET = (
        412,
        "ConditionNotMet",
        "The condition specified using HTTP conditional header(s) is not met.",
    )
    CONTAINER_ALREADY_EXISTS = (409, "ContainerAlreadyExists", "The specified container already exists.")
    CONTAINER_NOT_FOUND = (404, "ContainerNotFound", "The specified container does not exist.")
    INTERNAL_ERROR = (500, "InternalError", "The server encountered an internal error.")
    INVALID_BLOB_TYPE = (409, "InvalidBlobType", "The blob type is invalid for this operation.")
    INVALID_BLOCK_LIST = (400, "InvalidBlockList", "The specified block list is invalid.")
    INVALID_BLOB_OR_BLOCK = (400, "InvalidBlobOrBlock", "The specified blob or block content is invalid.")
    INVALID_HEADER_VALUE = (
        400,
        "InvalidHeaderValue",
        "The value for one of the HTTP headers is not in the correct format.",
    )
    INVALID_INPUT = (400, "InvalidInput", "One of the request inputs is not valid.")
    INVALID_MD5 = (400, "InvalidMd5", "The MD5 value specified in the request is invalid.")
    INVALID_METADATA = (400, "InvalidMetadata", "The metadata specified is invalid.")
    INVALID_QUERY_PARAMETER_VALUE = (
        400,
        "InvalidQueryParameterValue",
        "Value for one of the query parameters specified in the request URI is invalid.",
    )
    INVALID_RANGE = (
        416,
        "InvalidRange",
        "The range specified is invalid for the current size of the resource.",
    )
    INVALID_RESOURCE_NAME = (
        400,
        "InvalidResourceName",
        "The specified resource name contains invalid characters or is of an invalid length.",
    )
    INVALID_URI = (400, "InvalidUri", "The requested URI does not represent any resource on the server.")
    INVALID_XML_DOCUMENT = (400, "InvalidXmlDocument", "The XML specified is not syntactically valid.")
    LEASE_NOT_PRESENT = (
        412,
        "LeaseNotPresentWithBlobOperation",
        "There is currently no lease on the blob.",
    )
    MAX_BLOB_SIZE_CONDITION_NOT_MET = (
        412,
        "MaxBlobSizeConditionNotMet",
        "The max blob size condition specified was not met.",
    )
    MD5_MISMATCH = (
        400,
        "Md5Mismatch",
        "The MD5 value specified in the request did not match with the MD5 value calculated by the server.",
    )
    METADATA_TOO_LARGE = (
        400,
        "MetadataTooLarge",
        "The size of the specified metadata exceeds the maximum size permitted.",
    )
    MISSING_CONTENT_LENGTH = (
        411,
        "MissingContentLengthHeader",
        "The Content-Length header was not specified.",
    )
    MISSING_REQUIRED_HEADER = (
        400,
        "MissingRequiredHeader",
        "An HTTP header that's mandatory for this request is not specified.",
    )
    NO_AUTHENTICATION_INFORMATION = (
        401,
        "NoAuthenticationInformation",
        "Server failed to authenticate the request. Please refer to the information in the www-authenticate "
        "header.",
    )
    NOT_IMPLEMENTED = (501, "NotImplemented", "The local Blob service does not have this operation.")
    NOT_MODIFIED = (
        304,
        "ConditionNotMet",
        "The condition specified using HTTP conditional header(s) is not met.",
    )
    OUT_OF_RANGE_INPUT = (400, "OutOfRangeInput", "One of the request inputs is out of range.")
    OUT_OF_RANGE_QUERY_PARAMETER_VALUE = (
        400,
        "OutOfRangeQueryParameterValue",
        "One of the query parameters specified in the request URI is outside the permissible range.",
    )
    PUBLIC_ACCESS_NOT_PERMITTED = (
        409,
        "PublicAccessNotPermitted",
        "Public access is not permitted on this storage account.",
    )
    REQUEST_BODY_TOO_LARGE = (
        413,
        "RequestBodyTooLarge",
        "The request body is too large and exceeds the maximum permissible limit.",
    )
    UNAUTHORIZED_BLOB_OVERWRITE = (
        403,
        "UnauthorizedBlobOverwrite",
        "This request is not authorized to perform blob overwrites.",
    )
    UNSUPPORTED_HTTP_VERB = (
        405,
        "UnsupportedHttpVerb",
        "The resource doesn't support the specified HTTP verb.",
    )

    @property
    def status(self) -> int:
        """The HTTP status of the answer."""
        return self.value[0]

    @property
    def code(self) -> str:
        """The value of x-ms-error-code."""
        return self.value[1]

    @property
    def message(self) -> str:
        """The message when there is nothing more exact to say."""
        return self.value[2]


class BlobRefused(Exception):
    """A request that the service answers with an error; the HTTP shell turns it into that answer."""

    def __init__(self, fault: BlobErrorCode, detail: str | None = None) -> None:
        self.fault = fault
        self.detail = detail
        super().__init__(f"{fault.code}: {detail or fault.message}")
