"""What holds for every test.

How fast a machine generates its examples is nobody's failure. Whatever the SDK sends to Batch and gets from
it fits the published contract.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from azure.batch.aio import BatchClient
from hypothesis import HealthCheck, settings

from tests.contract import SPECS, Contract, ContractPolicy, at_hand

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_report_header() -> str | None:
    """Say so when nothing is checked."""
    return None if at_hand() else f"contract of Batch: not checked, {SPECS} is not there"


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
