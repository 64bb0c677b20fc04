"""How a task's end is told: from what its slot or the scheduler says to the result that travels.

A result fits into a message, whatever the task printed: what is too long loses the front of its output, then
its traceback, then its tag, which its client knows anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from orjson import Fragment

from batchflow.model import Status
from batchflow.protocol import wire
from batchflow.protocol.fields import to_base64
from batchflow.protocol.packing import MOST_BYTES
from batchflow.protocol.values.encoding import container_size, is_container
from batchflow.retry import Failure

if TYPE_CHECKING:
    from node_agent.execution.outcomes import Outcome
    from node_agent.scheduling.events import Verdict

_TAIL: Final = 4096
_LONGEST_ERROR: Final = 8192
"""Characters that are kept of a text that is too long."""


def failure(outcome: Outcome) -> Failure | None:
    """Return what the decision on a retry looks at; None for a success."""
    if outcome.status is Status.SUCCEEDED:
        return None
    kind = outcome.kind or "TaskFailed"
    return Failure(kind, outcome.exception, outcome.exit_code, outcome.request, outcome.delay)


def encode_outcome(item: wire.TaskItem, outcome: Outcome, host: str) -> bytes:
    """Encode the result of a task that ran, with everything stored."""
    value, encoded = _travelling(outcome.value)
    result = wire.result_of(
        item,
        host=host,
        status=outcome.status,
        value=value,
        error=outcome.error,
        kind=outcome.kind,
        traceback=outcome.traceback,
        stdout=outcome.stdout,
        stderr=outcome.stderr,
        started_at=outcome.started_at,
        finished_at=outcome.finished_at,
        files=outcome.files,
        folder=outcome.folder,
    )
    result.encoded = encoded
    result.raised, result.raised_data = outcome.raised, outcome.raised_data
    result.spans = outcome.spans
    return fitting(result)


def _travelling(value: bytes | wire.Reference | None) -> tuple[Any, str | None]:
    """Return what a result's message has of a value, and its container if that is not in the reference."""
    if not isinstance(value, bytes):
        return value, None
    if not is_container(value):
        return Fragment(value), None
    end = container_size(value)
    if end == len(value):
        return wire.carried(value), None
    return Fragment(value[end:]), to_base64(value[:end])


def encode_verdict(item: wire.TaskItem, verdict: Verdict, host: str, at: float) -> bytes:
    """Encode the result of a task that the scheduler ended."""
    result = wire.result_of(
        item, host=host, status=verdict.status, error=verdict.error, kind=verdict.kind, finished_at=at
    )
    return fitting(result)


def fitting(result: wire.ResultItem, limit: int = MOST_BYTES) -> bytes:
    """Encode a result as it travels, shortened as far as it must be."""
    encoded = wire.encode(result)
    for shorten in _SHORTER:
        if len(encoded) <= limit:
            break
        result = shorten(result)
        encoded = wire.encode(result)
    return encoded


def _short_output(result: wire.ResultItem) -> wire.ResultItem:
    return replace(result, stdout=_end(result.stdout, _TAIL), stderr=_end(result.stderr, _TAIL))


def _short_errors(result: wire.ResultItem) -> wire.ResultItem:
    traceback = None if result.traceback is None else _end(result.traceback, _TAIL)
    error = None if result.error is None else result.error[:_LONGEST_ERROR]
    history = tuple(replace(past, error=past.error[:_LONGEST_ERROR]) for past in result.history[-16:])
    return replace(result, traceback=traceback, error=error, history=history)


def _without_tag(result: wire.ResultItem) -> wire.ResultItem:
    return replace(result, tag=None)


def _without_extras(result: wire.ResultItem) -> wire.ResultItem:
    kept = replace(result, stdout="", stderr="", traceback=None, history=(), files=())
    return replace(kept, raised_data=None, spans=None)


_SHORTER: Final[tuple[Callable[[wire.ResultItem], wire.ResultItem], ...]] = (
    _short_output,
    _short_errors,
    _without_tag,
    _without_extras,
)


def _end(text: str, length: int) -> str:
    return text if len(text) <= length else "..." + text[-length:]
