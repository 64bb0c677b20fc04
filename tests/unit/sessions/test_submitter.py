"""The span of a submission: it ends with it, and has the name of its task."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from batchflow.errors import ConfigurationError, StorageError
from batchflow.pool import Pool
from batchflow.session import Session
from tests.support.agent import Agent
from tests.support.services import Doubles
from tests.support.waiting import eventually, within


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """The spans of sessions that open from now on."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield exporter
    provider.shutdown()


def submits(exporter: InMemorySpanExporter) -> list[tuple[object, object]]:
    """Return uid and label of the submissions whose spans have ended."""
    found = [
        span.attributes or {} for span in exporter.get_finished_spans() if span.name.startswith("submit")
    ]
    return [(each["messaging.message.id"], each["batchflow.task.id"]) for each in found]


async def test_the_span_of_a_submission_that_fails_ends(
    exporter: InMemorySpanExporter, session: Session, doubles: Doubles
) -> None:
    """Its arguments cannot be stored, or its tag is too large."""
    doubles.storage.faults["put", "args/"] = [StorageError("the account is read-only")]
    with pytest.raises(StorageError, match="read-only"):
        await session.submit("x.py", args="x" * 200_000)
    with pytest.raises(ConfigurationError, match="tag"):
        await session.submit("x.py", tag="t" * 1_000_000)
    assert len(submits(exporter)) == 2


async def test_a_span_has_the_number_that_its_task_got_after_its_arguments_were_stored(
    exporter: InMemorySpanExporter, pool: Pool, session: Session, agent: Agent, doubles: Doubles
) -> None:
    """Another task was submitted meanwhile."""
    gate = doubles.storage.gates["put", "args/"] = asyncio.Event()
    large = asyncio.ensure_future(session.submit("x.py", args="x" * 200_000))
    await eventually(lambda: any(name.startswith("args/") for _, name in doubles.storage.calls))
    small = await session.submit("x.py")
    gate.set()
    assert {(await within(large)).task_id, small.task_id} == {"0", "1"}
    items = await agent.take(2)
    assert {(item.uid, item.task_id) for item in items} == set(submits(exporter))
