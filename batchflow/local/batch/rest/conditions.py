"""The conditional headers of a request, and the headers by which a client can ask so.

A read whose condition is not met is answered with 304, anything else with 412.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING

from batchflow.local.batch.core.errors import Refused
from batchflow.local.batch.rest.documents import etag
from batchflow.local.security.sharedkey import http_time

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchflow.local.batch.core.entities import Versioned


def check(method: str, headers: Mapping[str, str], stamp: Versioned) -> None:
    """Refuse a request whose conditions the resource does not meet. `headers`: case-insensitive."""
    tag = etag(stamp)
    match, none_match = _tags(headers.get("If-Match")), _tags(headers.get("If-None-Match"))
    if match is not None and tag not in match and "*" not in match:
        raise Refused("ConditionNotMet", Condition="If-Match")
    if none_match is not None and (tag in none_match or "*" in none_match):
        raise _not_new(method, "If-None-Match")
    check_dates(method, headers, stamp.modified)


def check_dates(method: str, headers: Mapping[str, str], modified: float) -> None:
    """Check the conditions of a resource that has a date and no version."""
    since = _date(headers.get("If-Modified-Since"))
    if since is not None and int(modified) <= since:
        raise _not_new(method, "If-Modified-Since")
    unless = _date(headers.get("If-Unmodified-Since"))
    if unless is not None and int(modified) > unless:
        raise Refused("ConditionNotMet", Condition="If-Unmodified-Since")


def stamp_headers(stamp: Versioned) -> dict[str, str]:
    """Return a resource's version, for conditions to come."""
    return {"ETag": etag(stamp), "Last-Modified": http_date(stamp.modified)}


def http_date(seconds: float) -> str:
    """Return a time as headers have it."""
    return format_datetime(datetime.fromtimestamp(seconds, UTC), usegmt=True)


def _not_new(method: str, header: str) -> Refused:
    return (
        Refused("NotModified") if method in ("GET", "HEAD") else Refused("ConditionNotMet", Condition=header)
    )


def _tags(header: str | None) -> set[str] | None:
    if header is None:
        return None
    return {tag.strip().removeprefix("W/").strip('"') for tag in header.split(",")}


def _date(header: str | None) -> float | None:
    if header is None:
        return None
    try:
        return http_time(header)
    except ValueError:
        raise Refused("InvalidHeaderValue", HeaderValue=header) from None
