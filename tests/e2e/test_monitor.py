"""Outcomes, node events and logs reach a Logs Ingestion endpoint through Azure's own client."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from batchflow import Client, ConfigurationError
from batchflow.azure.identity import logged_in
from batchflow.azure.monitor import MonitorIngestion
from batchflow.local.monitor.server import IngestionServer
from batchflow.local.security.entra import METRICS_PUBLISHER, Assignment
from batchflow.local.server import LocalCloud
from batchflow.pools.monitoring import agent_logs, shipper
from batchflow.settings import Settings
from tests.support.waiting import eventually

pytest.importorskip("azure.monitor.ingestion", reason="the extra `monitor` is not installed")

ROLES = {"sender": (Assignment(METRICS_PUBLISHER),), "stranger": ()}
TASKS = {"x.py": b"def do_action(engine, args):\n    return 1 // args[0]\n"}


@pytest.fixture
async def started(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[LocalCloud, Settings]]:
    """A local cloud with an endpoint for logs, in a process that may send to it."""
    cloud = LocalCloud(nodes=1, roles=ROLES)
    settings = await cloud.start()
    for name, value in cloud.identity_environment("sender").items():
        monkeypatch.setenv(name, value)
    yield cloud, settings
    await cloud.aclose()


@pytest.fixture
def cloud(started: tuple[LocalCloud, Settings]) -> LocalCloud:
    return started[0]


@pytest.fixture
def sending(started: tuple[LocalCloud, Settings]) -> Settings:
    """Settings of a client that sends."""
    cloud, settings = started
    agent = replace(settings.agent, heartbeat_interval=0.5)
    return replace(settings, agent=agent, monitor=cloud.monitor_settings)


def endpoint(cloud: LocalCloud) -> IngestionServer:
    assert cloud.ingestion is not None
    return cloud.ingestion


async def test_what_happens_is_sent_after_a_service_was_busy(
    cloud: LocalCloud, sending: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last rows leave when the client closes."""
    monkeypatch.setattr(shipper, "INTERVAL", 0.2)
    monkeypatch.setattr(agent_logs, "PAUSE", 0.2)
    server = endpoint(cloud)
    server.throttled, server.retry_after = 1, 0
    async with Client(sending) as client:
        pool = await client.ensure_pool("demo", files=TASKS)
        async with pool.session("s") as session:
            ended = [await task.outcome() for task in await session.submit_many("x.py", [1, 0])]
            logging.getLogger("batchflow.test").warning("said", extra={"size": 3})
            streams = server.rows
            await eventually(lambda: len(streams) == 3, 20.0)
            last = await (await session.submit("x.py", args=[1])).outcome()
    assert [result.ok for result in [*ended, last]] == [True, False, True]
    tasks = server.rows["Custom-BatchflowTasks"]
    assert [row["Outcome"] for row in tasks] == ["succeeded", "failed", "succeeded"]
    assert {(row["Pool"], row["Session"], row["Command"]) for row in tasks} == {("demo", "s", "x.py")}
    assert "ZeroDivisionError" in tasks[1]["Error"]
    assert server.rows["Custom-BatchflowNodes"][0]["Event"] == "came"
    logs = server.rows["Custom-BatchflowLogs"]
    assert {"client", "agent"} >= {row["Source"] for row in logs}
    assert [row["Fields"]["size"] for row in logs if row["Event"] == "said"] == [3]


async def test_answers_of_the_service_are_told_apart(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, wanted = endpoint(cloud), cloud.monitor_settings
    assert wanted.endpoint is not None
    assert wanted.rule is not None
    async with (
        logged_in("monitor.endpoint") as credential,
        MonitorIngestion(wanted.endpoint, wanted.rule, credential, wanted.ca_file) as sender,
        MonitorIngestion(wanted.endpoint, "dcr-other", credential, wanted.ca_file) as other,
    ):
        assert (await sender.upload("Custom-A", [{"a": 1}])).state == "taken"
        assert server.rows["Custom-A"] == [{"a": 1}]
        server.throttled = 1
        busy = await sender.upload("Custom-A", [{"a": 2}])
        assert (busy.state, busy.wait) == ("later", 1.0)
        server.most_bytes = 100
        assert (await sender.upload("Custom-A", [{"a": "x" * 200}])).state == "too large"
        assert (await other.upload("Custom-A", [{"a": 3}])).state == "refused"
    for name, value in cloud.identity_environment("stranger").items():
        monkeypatch.setenv(name, value)
    async with (
        logged_in("monitor.endpoint") as credential,
        MonitorIngestion(wanted.endpoint, wanted.rule, credential, wanted.ca_file) as stranger,
    ):
        refused = await stranger.upload("Custom-A", [{"a": 4}])
        assert refused.state == "refused"
        assert "may not send" in refused.reason
    with pytest.raises(ConfigurationError, match="needs https"):
        MonitorIngestion("http://x", "dcr", credential)
    assert server.rows["Custom-A"] == [{"a": 1}]


async def test_endpoint_without_a_rule_is_refused(sending: Settings) -> None:
    settings = replace(sending, monitor=replace(sending.monitor, rule=None))
    with pytest.raises(ConfigurationError, match=r"monitor\.rule"):
        async with Client(settings):
            pass
