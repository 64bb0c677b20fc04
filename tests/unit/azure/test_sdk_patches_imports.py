"""Importing an adaptor imports its own SDK and no other: start-up time is dear."""

from __future__ import annotations

import subprocess
import sys

import pytest

OTHERS = {
    "batchflow.azure.servicebus": (
        "azure.batch",
        "azure.storage",
        "azure.servicebus.aio.management",
        "aiohttp",
        "requests",
    ),
    "batchflow.azure.blob": ("azure.batch", "azure.servicebus", "requests"),
    "batchflow.azure.batch": ("azure.servicebus", "azure.storage", "requests"),
    "batchflow.azure.errors": ("azure.batch", "azure.core", "azure.servicebus", "azure.storage"),
    "batchflow.testing": ("azure.batch", "azure.core", "azure.servicebus", "azure.storage"),
}


@pytest.mark.parametrize("module", OTHERS)
def test_imports_only_its_own(module: str) -> None:
    """The modules of other services are not loaded."""
    code = f"import sys, {module}; print('\\n'.join(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=110
    )
    assert not set(OTHERS[module]) & set(loaded.stdout.splitlines())


BLOCKING = """
import batchflow.azure.blob, batchflow.azure.servicebus
import azure.storage.blob, azure.servicebus.management
from azure.core.pipeline.transport import RequestsTransport

assert isinstance(RequestsTransport, type), RequestsTransport
blob = azure.storage.blob.BlobServiceClient("https://account.blob.core.windows.net", credential="a2V5")
bus = azure.servicebus.management.ServiceBusAdministrationClient.from_connection_string(
    "Endpoint=sb://space.servicebus.windows.net/;SharedAccessKeyName=name;SharedAccessKey=a2V5"
)
for client in (blob, bus._impl):
    transport = (client._pipeline if client is blob else client._client._pipeline)._transport
    assert type(transport) is RequestsTransport, transport
"""


def test_blocking_clients_work_beside() -> None:
    """What is spared at import is there when a program uses the blocking clients of the same SDKs."""
    subprocess.run([sys.executable, "-c", BLOCKING], check=True, timeout=110)


def test_whoever_imports_it_meanwhile() -> None:
    """In another thread, while the SDKs are being imported: it is called, subclassed, asked for as ever."""
    from azure.core.pipeline.transport import RequestsTransport as Real

    from batchflow.azure.sdk_patches import without_requests

    with without_requests(), without_requests():
        from azure.core.pipeline.transport import RequestsTransport as Late

        assert Late is not Real
    from azure.core.pipeline.transport import RequestsTransport as Again

    class Own(Late):  # type: ignore[misc]
        pass

    assert Again is Real
    assert Own.__mro__[1] is Real
    assert type(Late()) is Real
    assert isinstance(Real(), Late)
    assert not isinstance(1, Late)
