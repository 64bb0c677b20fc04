"""What the shared key schemes of Batch and of Blob have in common. No I/O, no clock.

Both sign the same eleven headers in the same order, an absent one as the empty string, and both refuse a
request whose date is more than a quarter of an hour off.
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import Final

SIGNED_HEADERS: Final = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)

MAX_SKEW: Final = 15 * 60.0
"""Seconds that a request's date may differ from the service's clock, either way."""


def clock_skew(date: str, now: float) -> float:
    """Return the seconds between a date header and `now`, never negative. Raises ValueError for no date."""
    return abs(http_time(date) - now)


def http_time(date: str) -> float:
    """Return the seconds since the epoch of a date header. Raises ValueError for what is no date."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (OverflowError, TypeError, IndexError) as error:
        raise ValueError(f"{date[:64]!r} is no date") from error
