"""One trace for a task: submitted, sent, run on its node, received and shown.

Spans are named by OpenTelemetry's conventions for messaging. The task's context travels with it, as a W3C
`traceparent`. A node exports nothing: when the result has come, the session makes the span of the run from
the times in it, and those that the task has added. So nodes need no SDK, no exporter and no credentials.

What is not sampled costs a random number. The share is the setting `telemetry.sample`, because the SDK's own
sampler costs as much as a small task.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import NoneType
from typing import TYPE_CHECKING, Any, Final

from batchflow.model import Status
from batchflow.sessions.tracing.meters import Meters, active_meters
from batchflow.sessions.tracing.providers import active_tracer
from batchflow.support.event_log import event_logger

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext, Tracer

    from batchflow.model import Event
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.protocol.wire import ResultItem
    from batchflow.sessions.records.tracker import Entry, Tracker

logger = event_logger("batchflow.tasks")

_NANO: Final = 1_000_000_000
_LAST_TIME: Final = 9e9
"""Seconds since the epoch, in the year 2255: what fits into 63 bits as nanoseconds."""
_MOST_LINKS: Final = 128
"""Links of a span, the default limit of the SDKs."""


class TaskTrace:
    """The trace of one task, as far as its session makes it."""

    __slots__ = ("_submit", "context", "received", "traceparent")

    def __init__(self, submit: Span) -> None:
        self._submit: Span | None = submit
        self.context: SpanContext = submit.get_span_context()
        self.traceparent: str = f"00-{self.context.trace_id:032x}-{self.context.span_id:016x}-01"
        """What travels with the task."""
        self.received: Span | None = None
        """From the arrival of the result until it was shown."""

    def describe(self, entry: Entry) -> None:
        """Name the task, which has got its number later than its trace."""
        if self._submit is not None:
            self._submit.set_attributes(_task_attributes(entry))

    def submitted(self) -> None:
        """End the span of the submission. Idempotent."""
        span, self._submit = self._submit, None
        if span is not None:
            span.end()

    def delivered(self) -> None:
        """Note that the user has the result. Idempotent."""
        span, self.received = self.received, None
        if span is not None:
            span.end()


class SessionTelemetry:
    """Traces and counts the tasks of one session."""

    def __init__(
        self,
        tracer: Tracer | None,
        meters: Meters | None,
        *,
        sample: float,
        pool: str,
        job: str,
        session: str,
        queue: str,
        mailbox: str,
    ) -> None:
        """`sample`: from 0 to 1. `queue`: where tasks go; `mailbox`: where results come from."""
        self._tracer = tracer
        self.meters = meters
        self._sample = sample
        self._pool = pool
        self._queue = queue
        self._mailbox = mailbox
        self._labels = {"batchflow.pool": pool, "batchflow.job": job, "batchflow.session": session}

    @classmethod
    def of(cls, runtime: PoolRuntime, job: str, session: str) -> SessionTelemetry | None:
        """Return what traces a session's tasks; None where the program has not set up OpenTelemetry."""
        tracer, meters = active_tracer(), active_meters()
        if tracer is None and meters is None:
            return None
        manifest = runtime.manifest
        return cls(
            tracer,
            meters,
            sample=runtime.settings.telemetry.sample / 100.0,
            pool=runtime.pool_id,
            job=job,
            session=session,
            queue=manifest.task_queues[0].entity,
            mailbox=manifest.results_queues[0].entity,
        )

    def begin(self, entry: Entry, inputs: Iterable[Entry] = ()) -> TaskTrace | None:
        """Begin the trace of a task, a child of the span that is current; None for one that is not sampled.

        `inputs`: the tasks that it waits for; theirs are linked.
        """
        if self._tracer is None or (self._sample < 1.0 and random.random() >= self._sample):
            return None
        from opentelemetry.trace import Link, SpanKind

        links = [Link(each.trace.context) for each in inputs if each.trace is not None][:_MOST_LINKS]
        span = self._tracer.start_span(
            f"submit {self._queue}",
            kind=SpanKind.PRODUCER,
            attributes=self._attributes("submit", "create", self._queue) | _task_attributes(entry),
            links=links,
        )
        if not span.get_span_context().trace_flags.sampled:
            return None
        return TaskTrace(span)

    @contextmanager
    def sending(self, entries: Sequence[Entry], messages: int, queue: str) -> Iterator[None]:
        """Make a span of a send. The tasks that it carries, packed into `messages`, are its links."""
        traces = [entry.trace for entry in entries if entry.trace is not None]
        if not traces or self._tracer is None:
            yield
            return
        from opentelemetry.trace import Link, SpanKind, Status, StatusCode

        span = self._tracer.start_span(
            f"send {queue}",
            kind=SpanKind.CLIENT,
            attributes=self._attributes("send", "send", queue)
            | {"messaging.batch.message_count": len(entries), "batchflow.packs": messages},
            links=[Link(trace.context) for trace in traces[:_MOST_LINKS]],
        )
        try:
            yield
        except BaseException as error:
            span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
            span.set_attribute("error.type", type(error).__name__)
            raise
        finally:
            span.end()

    def ended(self, entry: Entry, item: ResultItem) -> None:
        """Take the outcome of a task: its run becomes a span, and its times are recorded."""
        if self.meters is not None:
            self.meters.ended(self._pool, item)
        trace: TaskTrace | None = entry.trace
        now = time.time()
        if trace is None:
            if self._tracer is None and self.meters is not None and random.random() < self._sample:
                self.meters.times(self._pool, item, now)
            return
        if self.meters is not None:
            self.meters.times(self._pool, item, now)
        trace.submitted()
        self._trace_run(entry, trace, item)
        self._trace_receipt(entry, trace, item)

    def log(self, tracker: Tracker, event: Event) -> None:
        """Log what a traced task told its engine, with the ids of its trace. Nothing for another event."""
        if self._tracer is None or event.kind != "log" or event.task_id is None:
            return
        entry = tracker.labelled(event.task_id)
        if entry is not None and entry.trace is not None:
            with _current(entry.trace.context):
                about = {"task": entry.task_id, "uid": entry.uid, "text": event.message}
                logger.info("task_log", extra=about | _log_ids(entry.trace.context))

    def _trace_run(self, entry: Entry, trace: TaskTrace, item: ResultItem) -> None:
        if item.started_at is None or item.host is None or self._tracer is None:
            return
        from opentelemetry.trace import SpanKind

        span = self._tracer.start_span(
            f"run {self._queue}",
            _within(trace.context),
            kind=SpanKind.CONSUMER,
            attributes=self._attributes("run", "process", self._queue)
            | _task_attributes(entry)
            | {"batchflow.node": item.host, "batchflow.attempt": item.attempt},
            start_time=_nanoseconds(item.started_at),
        )
        for past in item.history:
            about: dict[str, Any] = {
                "batchflow.attempt": past.number,
                "batchflow.node": past.node,
                "error": past.error,
            }
            span.add_event("retry", about, _nanoseconds(past.finished_at))
        _set_outcome(span, item)
        self._add_spans(span, item.spans)
        if item.status is not Status.SUCCEEDED:
            with _current(span.get_span_context()):
                about = {"task": entry.task_id, "uid": entry.uid, "kind": item.kind, "error": item.error}
                logger.warning("task_failed", extra=about | _log_ids(span.get_span_context()))
        span.end(_nanoseconds(item.finished_at or item.started_at))

    def _add_spans(self, run: Span, told: Any) -> None:
        """Make the spans that the task has added. What cannot be read is left out: a node wrote it."""
        assert self._tracer is not None
        made: dict[int, Span] = {}
        rows = sorted(filter(_is_span, told), key=lambda row: row["id"]) if isinstance(told, list) else []
        for row in rows:
            parent = made.get(row.get("parent"), run)
            span = self._tracer.start_span(
                row["name"],
                _within(parent.get_span_context()),
                attributes=row.get("attributes"),
                start_time=_nanoseconds(row["start"]),
            )
            made[row["id"]] = span
            if isinstance(row.get("error"), str):
                _set_error(span, row["error"], row["error"].partition(":")[0])
            span.end(_nanoseconds(row["end"]))

    def _trace_receipt(self, entry: Entry, trace: TaskTrace, item: ResultItem) -> None:
        if self._tracer is None:
            return
        from opentelemetry.trace import SpanKind

        span = self._tracer.start_span(
            f"receive {self._mailbox}",
            _within(trace.context),
            kind=SpanKind.CLIENT,
            attributes=self._attributes("receive", "receive", self._mailbox) | _task_attributes(entry),
        )
        if item.host is None:
            _set_outcome(span, item)
        trace.received = span

    def _attributes(self, name: str, kind: str, destination: str) -> dict[str, Any]:
        return {
            "messaging.system": "servicebus",
            "messaging.operation.name": name,
            "messaging.operation.type": kind,
            "messaging.destination.name": destination,
            **self._labels,
        }


def _task_attributes(entry: Entry) -> dict[str, Any]:
    return {
        "messaging.message.id": entry.uid,
        "batchflow.task.id": entry.task_id,
        "batchflow.command": entry.command,
    }


def _log_ids(context: SpanContext) -> dict[str, str]:
    """Return the fields of a log line that find its trace, as lines of agents have them."""
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def _set_outcome(span: Span, item: ResultItem) -> None:
    span.set_attribute("batchflow.outcome", item.status.value)
    if item.status is not Status.SUCCEEDED:
        _set_error(span, item.error or "", item.kind or "TaskFailed")


def _set_error(span: Span, text: str, kind: str) -> None:
    from opentelemetry.trace import Status as SpanStatus
    from opentelemetry.trace import StatusCode

    span.set_status(SpanStatus(StatusCode.ERROR, text[:1000]))
    span.set_attribute("error.type", kind)


def _is_span(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str) or type(row.get("id")) is not int:
        return False
    if type(row.get("parent")) not in (int, NoneType) or type(row.get("attributes")) not in (dict, NoneType):
        return False
    return all(type(row.get(name)) in (int, float) and row[name] > 0 for name in ("start", "end"))


def _within(parent: SpanContext) -> Any:
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context

    return set_span_in_context(NonRecordingSpan(parent))


@contextmanager
def _current(span: SpanContext) -> Iterator[None]:
    """Let a span be the current one, so that what is logged has its ids."""
    from opentelemetry.trace import NonRecordingSpan, use_span

    with use_span(NonRecordingSpan(span)):
        yield


def _nanoseconds(at: float) -> int:
    """Return a time as spans have it. A node told it, so it may be far from any time that fits."""
    return int(min(max(at, 0.0), _LAST_TIME) * _NANO)
