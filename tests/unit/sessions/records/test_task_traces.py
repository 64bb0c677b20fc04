"""What agents claim of tasks, on its way into traces, metrics, rows and live views."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from batchflow.model import Attempt, Status
from batchflow.pools.monitoring.buffer import RowBuffer
from batchflow.pools.monitoring.rows import task_row
from batchflow.protocol import wire
from batchflow.protocol.wire import ResultItem
from batchflow.sessions.records.context import SessionContext
from batchflow.sessions.records.health import Problems
from batchflow.sessions.records.notices import Notices
from batchflow.sessions.records.outcomes import Outcomes
from batchflow.sessions.records.task_traces import SessionTelemetry
from batchflow.sessions.records.tracker import Entry, Tracker
from batchflow.sessions.tracing.meters import Meters

TIMES = st.sampled_from([0, 0.0, 1e300, -1e300, 1e11, 1.7e9, 2**63, 1.7e9 + 0.5])
JSON: st.SearchStrategy[Any] = st.sampled_from(
    [
        None,
        True,
        0,
        1,
        -1,
        2**63,
        1e300,
        "",
        "s",
        [],
        [1, "s", None],
        {},
        {"a": 1, "b": [{}], "c": None, "": "x"},
    ]
)
SPANS = st.fixed_dictionaries(
    {"name": st.just("s"), "id": st.integers(0, 2), "start": TIMES, "end": TIMES},
    optional={"parent": st.integers(0, 2) | JSON, "attributes": JSON, "error": JSON},
) | st.fixed_dictionaries({"name": JSON, "id": JSON, "start": JSON, "end": JSON})
RESULTS = st.builds(
    ResultItem,
    uid=st.just("i:0"),
    value=st.none(),
    host=st.sampled_from([None, "h"]),
    job=st.just("j"),
    client=st.just("c"),
    task_id=st.just("0"),
    command=st.just("x.py"),
    error=st.sampled_from([None, "", "boom"]),
    status=st.sampled_from([Status.SUCCEEDED, Status.FAILED, Status.CANCELLED]),
    submitted_at=TIMES,
    kind=st.sampled_from([None, "", "ValueError"]),
    attempt=st.sampled_from([-1, 0, 1, 2**53]),
    history=st.lists(st.builds(Attempt, st.just(1), st.just("boom"), st.just("h"), TIMES), max_size=2).map(
        tuple
    ),
    started_at=st.none() | TIMES,
    finished_at=st.none() | TIMES,
    spans=JSON | st.lists(SPANS | JSON, max_size=3),
)


class _Monitor:
    """Makes rows of tasks, as a client with a monitor does."""

    def __init__(self) -> None:
        self.buffer = RowBuffer()

    def task(self, runtime: Any, item: ResultItem, trace: Any) -> None:
        self.buffer.add("tasks", task_row("p", item, 1.0))


@settings(deadline=None, max_examples=80)
@given(RESULTS)
def test_nothing_that_an_agent_claims_keeps_a_waiter_from_its_outcome(item: ResultItem) -> None:
    """Times far off, spans of any form, attempts without end."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    meters = Meters(MeterProvider([InMemoryMetricReader()]).get_meter("t"))
    telemetry = SessionTelemetry(
        provider.get_tracer("t"), meters, sample=1.0, pool="p", job="j", session="s", queue="q", mailbox="m"
    )
    runtime = SimpleNamespace(sessions=SimpleNamespace(monitor=_Monitor()))
    tracker = Tracker()
    context = SimpleNamespace(
        tracker=tracker,
        lifetime=None,
        problems=Problems(cast("Notices", None), 1.0),
        runtime=runtime,
        telemetry=telemetry,
    )
    outcomes = Outcomes(cast("SessionContext", context), None, lambda _: None)
    outcomes.history.watch()
    entry = Entry(0, 0, "i:0", "0", "x.py", "c", "j", 0.0)
    entry.trace = telemetry.begin(entry)
    tracker.add(entry)
    ended: list[Entry] = []
    outcomes.on_ended = ended.append
    assert outcomes.resolve(entry, item)
    assert ended == [entry]
    entry.deliver()
    for span in exporter.get_finished_spans():
        times = [span.start_time, span.end_time, *(event.timestamp for event in span.events)]
        assert all(type(at) is int and 0 <= at < 2**63 for at in times)
        span.to_json()
    provider.shutdown()


def test_the_claims_of_this_test_can_come() -> None:
    """The wire takes them: they are no errors of the protocol."""
    item = ResultItem(
        value=1, host="h", job="j", task_id="t", error=None, client="c", command="x.py", uid="i:0",
        status=Status.SUCCEEDED, started_at=1e300, spans=[{"parent": []}],
    )  # fmt: skip
    assert wire.decode(wire.join("results", [wire.encode(item)])) == [item]
