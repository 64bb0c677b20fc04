"""What importing batchflow costs and what it offers. The layers themselves are import-linter's contracts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import batchflow

LIGHT = [
    "import batchflow",
    "import batchflow.protocol.wire",
    "from batchflow import Retry",
    "from batchflow import Client",
]

REPORT = "import json, sys; print(json.dumps(sorted(sys.modules)))"


@pytest.mark.parametrize("statement", LIGHT)
def test_imports_load_no_azure_module(statement: str) -> None:
    """The SDKs are loaded when a connection is opened, not before."""
    finished = subprocess.run(
        [sys.executable, "-c", f"{statement}; {REPORT}"], capture_output=True, text=True, check=True
    )
    loaded = json.loads(finished.stdout)
    assert [name for name in loaded if name.partition(".")[0] == "azure"] == []


def test_all_is_sorted_and_exact() -> None:
    """`__all__` is sorted, each of its names is there, and no public name is left out."""
    assert list(batchflow.__all__) == sorted(batchflow.__all__)
    for name in batchflow.__all__:
        assert getattr(batchflow, name) is not None
    assert set(batchflow.__all__) <= set(dir(batchflow))


def test_an_unknown_name_is_an_attribute_error() -> None:
    """The lazy re-exports refuse what is not there, as any module does."""
    with pytest.raises(AttributeError, match="no_such_name"):
        batchflow.no_such_name  # noqa: B018
