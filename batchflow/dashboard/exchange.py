"""A request and an answer, as the page's handlers see them. They know no web framework."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import field
from typing import Any, Final

import orjson

from batchflow.support.frozen import frozen

MOST_BODY: Final = 64 * 1024
"""Bytes of a request's body that an adapter reads."""


@frozen
class PageRequest:
    """A request, with its path below the place where the page is."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    """By names in lower case."""
    body: bytes = b""


@frozen
class PageAnswer:
    """An answer: either a body, or a stream of pieces that has no end."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    stream: AsyncIterator[bytes] | None = None


def json_answer(document: Any, status: int = 200) -> PageAnswer:
    """Return a document as an answer."""
    body = orjson.dumps(document, default=str)
    return PageAnswer(status, {"content-type": "application/json", "cache-control": "no-store"}, body)


def refused(status: int, text: str) -> PageAnswer:
    """Return an error in words."""
    return json_answer({"error": text}, status)
