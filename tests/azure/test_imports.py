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
    ),
    "batchflow.azure.blob": ("azure.batch", "azure.servicebus"),
    "batchflow.azure.batch": ("azure.servicebus", "azure.storage"),
    "batchflow.azure.errors": ("azure.batch", "azure.core", "azure.servicebus", "azure.storage"),
    "batchflow.testing": ("azure.batch", "azure.core", "azure.servicebus", "azure.storage"),
}


@pytest.mark.parametrize("module", OTHERS)
def test_imports_only_its_own(module) -> None:
    """The modules of other services are not loaded."""
    code = f"import sys, {module}; print('\\n'.join(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=110
    )
    assert not set(OTHERS[module]) & set(loaded.stdout.splitlines())
