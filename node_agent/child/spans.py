"""The spans that a task adds to its trace: names, times and attributes, sent to the agent as they end.

No SDK runs here. The session that gets the result makes OpenTelemetry's spans of them.
"""

from __future__ import annotations

import itertools
import time
from contextvars import ContextVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Any, Final

SPAN: Final = "span"
"""The kind of the note that tells of a span."""
MOST_SPANS: Final = 64
"""Spans that a task adds, at most."""
_MOST_ATTRIBUTES: Final = 16
_LONGEST: Final = 500
"""Characters of a name, of a text among the attributes, and of an error."""

_numbers = itertools.count(1)
_current: ContextVar[int | None] = ContextVar("batchflow_span", default=None)


class TaskSpan:
    """One span, which lasts as long as its block."""

    def __init__(
        self, note: Callable[[dict[str, Any]], None] | None, name: str, attributes: Mapping[str, Any]
    ) -> None:
        """`note`: takes the span when it has ended; None: the task is not traced."""
        self._note = note
        self._name = name
        self._attributes = attributes

    def __enter__(self) -> None:
        self._id = next(_numbers)
        self._parent = _current.get()
        self._token = _current.set(self._id)
        self._start = time.time()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._token)
        if self._note is None:
            return
        span: dict[str, Any] = {
            "id": self._id,
            "name": str(self._name)[:_LONGEST],
            "start": self._start,
            "end": time.time(),
        }
        if self._parent is not None:
            span["parent"] = self._parent
        if self._attributes:
            span["attributes"] = _plain(self._attributes)
        if kind is not None:
            span["error"] = f"{kind.__name__}: {error}"[:_LONGEST].encode("utf-8", "replace").decode()
        self._note(span)


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as a trace takes them: texts, numbers and truth values."""
    found = {}
    for name in list(attributes)[:_MOST_ATTRIBUTES]:
        value = attributes[name]
        if not isinstance(value, bool | int | float):
            value = str(value)[:_LONGEST].encode("utf-8", "replace").decode()
        found[name] = value
    return found
