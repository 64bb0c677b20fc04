"""Core of the local Blob service's HTTP: what headers and query mean, and which headers answers carry.

Header mappings have lower-case names. A header or parameter that would change what a request does and that
this service does not have is refused with 501 (`check_supported`), never ignored.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import overload
from urllib.parse import unquote

from batchflow.local.blob.core.errors import BlobErrorCode, BlobRefused
from batchflow.local.blob.core.model import (
    MAX_PAGE,
    BlobKind,
    Conditions,
    ContentSettings,
    Metadata,
    Revision,
    StoredBlob,
    StoredContainer,
)
from batchflow.local.blob.core.xml import http_date
from batchflow.local.security.sharedkey import http_time
from batchflow.support.frozen import frozen

MAX_METADATA = 8 * 1024
_MAX_DIGITS = 18
MAX_MD5_RANGE = 4 * 1024 * 1024

_METADATA_PREFIX = "x-ms-meta-"
_METADATA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UNSUPPORTED_HEADERS = (
    "x-ms-access-tier",
    "x-ms-content-crc64",
    "x-ms-copy-source",
    "x-ms-default-encryption-scope",
    "x-ms-encryption-",
    "x-ms-expiry-",
    "x-ms-if-tags",
    "x-ms-immutability-policy-",
    "x-ms-legal-hold",
    "x-ms-rehydrate-priority",
    "x-ms-source-",
    "x-ms-structured-",
    "x-ms-tags",
)
_UNSUPPORTED_PARAMETERS = ("deletetype", "endbefore", "snapshot", "startfrom", "versionid")
_UNSUPPORTED_INCLUDES = {"uncommittedblobs"}

Headers = Mapping[str, str]
Query = tuple[tuple[str, str], ...]


@frozen
class Target:
    """What a request's path names; `raw` is the path as it stood on the wire."""

    raw: str
    account: str
    container: str
    blob: str


@frozen
class ByteRange:
    """The bytes asked for: from `start` up to and including `last` (None: to the end)."""

    start: int
    last: int | None

    def within(self, size: int) -> tuple[int, int]:
        """Return offset and length in content of `size` bytes, or INVALID_RANGE."""
        if self.start >= size:
            raise BlobRefused(BlobErrorCode.INVALID_RANGE)
        last = size - 1 if self.last is None else min(self.last, size - 1)
        return self.start, last - self.start + 1


@frozen
class ListOptions:
    """The parameters of a listing."""

    prefix: str
    delimiter: str
    start: str
    limit: int
    metadata: bool
    asked: Query


# Requests


def split_target(raw_url: str) -> tuple[Target, Query]:
    """Split `/account/container/blob?query` as it stood on the wire; names in the query become lower case."""
    raw, _, query = raw_url.partition("?")
    account, container, blob = ([*raw.lstrip("/").split("/", 2), "", ""])[:3]
    pairs = (pair.partition("=") for pair in query.split("&") if pair)
    try:
        target = Target(raw, *(unquote(part, errors="strict") for part in (account, container, blob)))
        return target, tuple((name.lower(), unquote(value, errors="strict")) for name, _, value in pairs)
    except UnicodeDecodeError:
        raise BlobRefused(BlobErrorCode.INVALID_URI, "The URI is not percent-encoded UTF-8.") from None


def check_supported(headers: Headers, query: Query) -> None:
    """Refuse what this service does not have."""
    for name in headers:
        if name.startswith(_UNSUPPORTED_HEADERS):
            raise BlobRefused(
                BlobErrorCode.NOT_IMPLEMENTED, f"The local Blob service does not have the header {name}."
            )
    for name, value in query:
        if name in _UNSUPPORTED_PARAMETERS:
            raise BlobRefused(
                BlobErrorCode.NOT_IMPLEMENTED, f"The local Blob service does not have the parameter {name}."
            )
        if name == "include" and (lacking := _UNSUPPORTED_INCLUDES & set(value.lower().split(","))):
            raise BlobRefused(
                BlobErrorCode.NOT_IMPLEMENTED, f"The local Blob service cannot include {sorted(lacking)}."
            )
    if "x-ms-lease-id" in headers:
        raise BlobRefused(BlobErrorCode.LEASE_NOT_PRESENT)


def parse_conditions(headers: Headers) -> Conditions:
    """Read the conditional headers."""
    return Conditions(
        headers.get("if-match"),
        headers.get("if-none-match"),
        _date(headers, "if-modified-since"),
        _date(headers, "if-unmodified-since"),
    )


def parse_range(headers: Headers) -> ByteRange | None:
    """Read x-ms-range, or else Range. Another form than `bytes=a-b` is ignored, as RFC 9110 allows."""
    found = _RANGE.match(headers.get("x-ms-range") or headers.get("range") or "")
    if found is None:
        return None
    start, last = int(found[1]), int(found[2]) if found[2] else None
    if last is not None and last < start:
        raise BlobRefused(BlobErrorCode.INVALID_RANGE)
    return ByteRange(start, last)


def parse_metadata(headers: Headers, original_names: Headers) -> Metadata:
    """Read the x-ms-meta- headers; `original_names` maps each lower-case name to how the client wrote it."""
    metadata = {
        original_names[name][len(_METADATA_PREFIX) :]: value
        for name, value in headers.items()
        if name.startswith(_METADATA_PREFIX)
    }
    if bad := [name for name in metadata if not _METADATA_NAME.match(name)]:
        raise BlobRefused(
            BlobErrorCode.INVALID_METADATA, f"A metadata name must be an identifier: {bad[0]!r} is not."
        )
    if sum(len(name) + len(value) for name, value in metadata.items()) > MAX_METADATA:
        raise BlobRefused(BlobErrorCode.METADATA_TOO_LARGE)
    return metadata


def parse_settings(headers: Headers, *, plain: bool = False) -> ContentSettings:
    """Read the x-ms-blob-content- headers; with `plain`, Content-Type and the like stand in for them."""

    def get(name: str, special: str | None = None) -> str | None:
        value = headers.get(special or f"x-ms-blob-{name}")
        return value or (headers.get(name) if plain else None) or None

    return ContentSettings(
        get("content-type") or ContentSettings().content_type,
        get("content-encoding"),
        get("content-language"),
        headers.get("x-ms-blob-content-disposition") or None,
        get("cache-control"),
        parse_md5(headers, "x-ms-blob-content-md5"),
    )


def parse_kind(headers: Headers) -> BlobKind:
    """Read x-ms-blob-type, which Put Blob must have."""
    match headers.get("x-ms-blob-type", ""):
        case "":
            raise BlobRefused(BlobErrorCode.MISSING_REQUIRED_HEADER, "x-ms-blob-type is missing.")
        case "PageBlob":
            raise BlobRefused(
                BlobErrorCode.NOT_IMPLEMENTED, "The local Blob service does not have page blobs."
            )
        case "BlockBlob" | "AppendBlob" as kind:
            return BlobKind(kind)
        case other:
            raise BlobRefused(BlobErrorCode.INVALID_HEADER_VALUE, f"x-ms-blob-type {other!r} is not known.")


def parse_md5(headers: Headers, name: str) -> bytes | None:
    """Read an MD5 digest from a header."""
    if not (value := headers.get(name)):
        return None
    try:
        digest = base64.b64decode(value, validate=True)
    except ValueError:
        raise BlobRefused(BlobErrorCode.INVALID_MD5) from None
    if len(digest) != 16:
        raise BlobRefused(BlobErrorCode.INVALID_MD5)
    return digest


def parse_block_id(query: Query) -> str:
    """Read the block id: base64 of at most 64 bytes."""
    block_id = parameter(query, "blockid")
    try:
        size = len(base64.b64decode(block_id, validate=True))
    except ValueError:
        size = 0
    if not 0 < size <= 64:
        raise BlobRefused(
            BlobErrorCode.INVALID_QUERY_PARAMETER_VALUE, "blockid must be the base64 form of 1 to 64 bytes."
        )
    return block_id


def parse_size(headers: Headers, name: str) -> int | None:
    """Read a header that holds a number of bytes."""
    if (value := headers.get(name)) is None:
        return None
    if not value.isdecimal() or len(value) > _MAX_DIGITS:
        raise BlobRefused(BlobErrorCode.INVALID_HEADER_VALUE, f"{name} is not a number of bytes.")
    return int(value)


def parse_list_options(query: Query) -> ListOptions:
    """Read the parameters of a listing."""
    limit = parameter(query, "maxresults")
    if limit and (not limit.isdecimal() or len(limit) > _MAX_DIGITS or not 0 < int(limit) <= MAX_PAGE):
        raise BlobRefused(
            BlobErrorCode.OUT_OF_RANGE_QUERY_PARAMETER_VALUE, f"maxresults goes from 1 to {MAX_PAGE}."
        )
    names = {"prefix": "Prefix", "marker": "Marker", "maxresults": "MaxResults", "delimiter": "Delimiter"}
    return ListOptions(
        parameter(query, "prefix"),
        parameter(query, "delimiter"),
        _read_marker(parameter(query, "marker")),
        int(limit) if limit else MAX_PAGE,
        "metadata" in parameter(query, "include").lower().split(","),
        tuple((names[name], value) for name, value in query if name in names and value),
    )


def write_marker(next_name: str | None) -> str:
    """Return the marker that stands for the name at which the next page begins."""
    return base64.urlsafe_b64encode(next_name.encode()).decode() if next_name else ""


def _read_marker(marker: str) -> str:
    try:
        return base64.urlsafe_b64decode(marker).decode()
    except ValueError:
        raise BlobRefused(
            BlobErrorCode.INVALID_QUERY_PARAMETER_VALUE, "marker is not one that was given out."
        ) from None


def parameter(query: Query, name: str) -> str:
    """Return the first value of a query parameter, or the empty string."""
    return next((value for key, value in query if key == name), "")


def _date(headers: Headers, name: str) -> float | None:
    if not (value := headers.get(name)):
        return None
    try:
        return http_time(value)
    except ValueError:
        raise BlobRefused(BlobErrorCode.INVALID_HEADER_VALUE, f"{name} is not an HTTP date.") from None


# Answers


def version_headers(stamp: Revision) -> dict[str, str]:
    """Return ETag and Last-Modified."""
    return {"ETag": stamp.etag, "Last-Modified": http_date(stamp.modified)}


def container_headers(container: StoredContainer) -> dict[str, str]:
    """Return the headers of Get Container Properties."""
    return {
        **version_headers(container.stamp),
        **_metadata_headers(container.metadata),
        "x-ms-lease-state": "available",
        "x-ms-lease-status": "unlocked",
        "x-ms-has-immutability-policy": "false",
        "x-ms-has-legal-hold": "false",
    }


def blob_headers(blob: StoredBlob, query: Query = ()) -> dict[str, str]:
    """Return the headers of Get Blob and Get Blob Properties, with a SAS's overrides (such as `rscc`)."""
    settings = _overridden(blob.content.settings, query)
    optional = {
        "Content-Encoding": settings.encoding,
        "Content-Language": settings.language,
        "Content-Disposition": settings.disposition,
        "Cache-Control": settings.cache_control,
        "Content-MD5": md5_header(settings.md5),
        "x-ms-blob-committed-block-count": (
            str(blob.appended) if blob.content.kind is BlobKind.APPEND else None
        ),
    }
    return {
        **version_headers(blob.stamp),
        **_metadata_headers(blob.content.metadata),
        "Content-Type": settings.content_type,
        "Accept-Ranges": "bytes",
        "x-ms-blob-type": blob.content.kind,
        "x-ms-creation-time": http_date(blob.created),
        "x-ms-lease-state": "available",
        "x-ms-lease-status": "unlocked",
        "x-ms-server-encrypted": "true",
        **{name: value for name, value in optional.items() if value is not None},
    }


def metadata_answer(stamp: Revision, metadata: Metadata) -> dict[str, str]:
    """Return the headers of Get Blob Metadata and Get Container Metadata."""
    return {**version_headers(stamp), **_metadata_headers(metadata)}


def range_headers(headers: Mapping[str, str], offset: int, length: int, size: int) -> dict[str, str]:
    """Turn a whole blob's headers into those of a part, in which the whole's MD5 has another name."""
    partial = {**headers, "Content-Range": f"bytes {offset}-{offset + length - 1}/{size}"}
    if (md5 := partial.pop("Content-MD5", None)) is not None:
        partial["x-ms-blob-content-md5"] = md5
    return partial


@overload
def md5_header(digest: bytes) -> str: ...
@overload
def md5_header(digest: None) -> None: ...
def md5_header(digest: bytes | None) -> str | None:
    """Return an MD5 digest as a header has it."""
    return None if digest is None else base64.b64encode(digest).decode()


def _metadata_headers(metadata: Metadata) -> dict[str, str]:
    return {_METADATA_PREFIX + name: value for name, value in metadata.items()}


def _overridden(settings: ContentSettings, query: Query) -> ContentSettings:
    if not (parameter(query, "sig") and parameter(query, "sr")):
        return settings
    for name in ("rsct", "rsce", "rscl", "rscd", "rscc"):
        if _CONTROL.search(parameter(query, name)):
            raise BlobRefused(
                BlobErrorCode.INVALID_QUERY_PARAMETER_VALUE, f"{name} cannot be the value of a header."
            )
    return replace(
        settings,
        content_type=parameter(query, "rsct") or settings.content_type,
        encoding=parameter(query, "rsce") or settings.encoding,
        language=parameter(query, "rscl") or settings.language,
        disposition=parameter(query, "rscd") or settings.disposition,
        cache_control=parameter(query, "rscc") or settings.cache_control,
    )
