"""One trace of a task, from its submission over the broker and its node to its result; counts; logs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from batchflow import Client
from batchflow.settings import Settings
from batchflow.support.setting_groups.observing import TelemetrySettings

pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

TASKS = {
    "traced.py": b"""
def do_action(engine, args):
    with engine.span("outer", size=3, shape=(1, 2)):
        engine.log("within")
        with engine.span("inner"):
            pass
    assert engine.traceparent.startswith("00-")
    if args[0] < 0:
        with engine.span("failing"):
            raise ValueError("below zero")
    return args[0]
""",
    "plain.py": b"""
def do_action(engine, args):
    with engine.span("nothing"):
        return engine.traceparent
""",
}


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """The spans of a program that has set up traces."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield exporter
    provider.shutdown()


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    """The metrics of a program that has set them up."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: provider)
    yield reader
    provider.shutdown()


def _note(ids: list[int]) -> bool:
    ids.append(trace.get_current_span().get_span_context().trace_id)
    return True


def named(spans: list[ReadableSpan], name: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name.partition(" ")[0] == name]


async def test_task_is_one_trace_from_submission_to_shown_result(
    client: Client,
    exporter: InMemorySpanExporter,
    reader: InMemoryMetricReader,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A send links the tasks of its packs, the task's own spans are in its run, and its failure is told."""
    pool = await client.ensure_pool("shared")
    caplog.set_level(logging.INFO, "batchflow.tasks")
    ids: list[int] = []
    caplog.handler.addFilter(lambda _: _note(ids))
    async with pool.session(files=TASKS) as session:
        tasks = await session.submit_many("traced.py", [1, 2, -3])
        ended = [await task.outcome() for task in tasks]
    assert [result.ok for result in ended] == [True, True, False]

    spans = list(exporter.get_finished_spans())
    submits, runs, receipts = (named(spans, name) for name in ("submit", "run", "receive"))
    assert [len(each) for each in (submits, runs, receipts)] == [3, 3, 3]
    by_uid = {str((span.attributes or {})["messaging.message.id"]): span for span in submits}
    for span in (*runs, *receipts):
        submit = by_uid[str((span.attributes or {})["messaging.message.id"])]
        assert span.parent == submit.context
        assert (span.attributes or {})["messaging.system"] == "servicebus"
    linked = {link.context.span_id for span in named(spans, "send") for link in span.links}
    assert linked == {span.context.span_id for span in submits if span.context}
    assert {span.kind.name for span in (*submits, *runs)} == {"PRODUCER", "CONSUMER"}

    run_ids = {span.context.span_id: span for span in runs if span.context}
    outers = named(spans, "outer")
    assert len(outers) == 3
    assert {run_ids[span.parent.span_id].name for span in outers if span.parent} == {runs[0].name}
    assert dict(outers[0].attributes or {}) == {"size": 3, "shape": "(1, 2)"}
    outer_ids = {span.context.span_id for span in outers if span.context}
    assert {span.parent.span_id for span in named(spans, "inner") if span.parent} == outer_ids
    (failing,) = named(spans, "failing")
    assert failing.status.description == "ValueError: below zero"
    (failed,) = [span for span in runs if not span.status.is_ok and span.status.description]
    assert (failed.attributes or {})["error.type"] == "TaskFailed"

    said = [record.getMessage() for record in caplog.records if record.name == "batchflow.tasks"]
    assert sum(text.startswith("task_failed") for text in said) == 1
    assert {span.context.trace_id for span in submits if span.context} >= {each for each in ids if each}
    assert any(ids)

    figures = {metric.name: metric for metric in _metrics(reader)}
    outcomes = {
        point.attributes["batchflow.outcome"]: point.value
        for point in figures["batchflow.tasks"].data.data_points
    }
    assert outcomes == {"succeeded": 2, "failed": 1}
    assert figures["batchflow.task.run_time"].data.data_points[0].count == 3
    assert {"batchflow.slots", "batchflow.slots.busy", "batchflow.task.queue_wait"} <= figures.keys()


def _metrics(reader: InMemoryMetricReader) -> list[Any]:
    data = reader.get_metrics_data()
    assert data is not None
    return [
        metric for each in data.resource_metrics for scope in each.scope_metrics for metric in scope.metrics
    ]


async def test_task_that_is_not_sampled_carries_nothing(
    cloud_settings: Settings, exporter: InMemorySpanExporter
) -> None:
    settings = replace(cloud_settings, telemetry=TelemetrySettings(sample=0.0))
    async with Client(settings) as client:
        pool = await client.ensure_pool("shared")
        async with pool.session(files=TASKS) as session:
            assert await session.run("plain.py", args=[]) is None
    assert not exporter.get_finished_spans()
