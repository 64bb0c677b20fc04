"""What holds for every test.

How fast a machine generates its examples is nobody's failure. Whatever the SDK sends to Batch and gets from
it fits the published contract. The local services answer as late as `BATCHFLOW_TEST_LATENCY` (seconds) says,
where a test does not say it itself.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from azure.batch.aio import BatchClient
from hypothesis import HealthCheck, settings

from batchflow import Client
from batchflow.local.batch.server import BatchServer
from batchflow.local.blob.server import BlobServer
from batchflow.local.launch import LocalCloudProcess
from batchflow.local.server import LocalCloud
from batchflow.local.servicebus.server import ServiceBusServer
from node_agent.system.process_groups import adopt_orphans
from tests.support.contract import SPECS, Contract, ContractPolicy, at_hand
from tests.support.latency import LATENCY

settings.register_profile(
    "any machine", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


def pytest_collection_finish() -> None:
    """Keep what was imported from being searched for garbage: 70 ms of each `gc.collect`."""
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str | None:
    """Say so when nothing is checked."""
    return None if at_hand() else f"contract of Batch: not checked, {SPECS} is not there"


@pytest.fixture(scope="session", autouse=True)
def _late_answers() -> Iterator[None]:
    """The latency is what a test gets that does not ask for another."""
    servers = (BatchServer, BlobServer, LocalCloud, LocalCloudProcess, ServiceBusServer)
    with pytest.MonkeyPatch.context() as patch:
        for starts in (*(server.__init__ for server in servers), vars(Client)["local"].__func__):
            patch.setitem(starts.__kwdefaults__, "latency", LATENCY)
        yield


@pytest.fixture(autouse=True)
def _own_child_watcher() -> Iterator[None]:
    """A slot has its process wait for children by the loop that it runs in (before Python 3.12). That loop
    goes with its test, and no other loop of this process could start a program then."""
    yield
    if sys.version_info < (3, 12) and adopt_orphans.cache_info().currsize:
        adopt_orphans.cache_clear()
        asyncio.set_child_watcher(None)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def _contract_of_all() -> Iterator[Contract]:
    """One contract for the run, which every Batch client that a test makes is held to."""
    contract = Contract()
    make = BatchClient.__init__

    def checked(self: BatchClient, *arguments: Any, **options: Any) -> None:
        policies = [*options.pop("per_retry_policies", ()), ContractPolicy(contract)]
        make(self, *arguments, per_retry_policies=policies, **options)

    with pytest.MonkeyPatch.context() as patch:
        if at_hand():
            patch.setattr(BatchClient, "__init__", checked)
        yield contract


@pytest.fixture(autouse=True)
def contract(_contract_of_all: Contract) -> Iterator[Contract]:
    """The published contract; a test whose exchanges do not fit fails."""
    yield _contract_of_all
    assert not _contract_of_all.verdict()
