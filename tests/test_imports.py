"""What importing batchflow costs and what it offers. The layers themselves are import-linter's contracts."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import batchflow

LIGHT = [
    "import batchflow",
    "import batchflow.protocol.wire",
    "from batchflow import Retry",
    "from batchflow import Client",
]

AGENT = Path(__file__).parents[1] / "node_agent"
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


def test_only_the_process_of_a_task_can_unpickle() -> None:
    """A pickle executes what it names, so nothing of the agent outside of its children opens one."""
    importing = {
        path.relative_to(AGENT).parts[0]
        for path in AGENT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (*(alias.name for alias in node.names), getattr(node, "module", None) or "")
        if name.partition(".")[0] in ("pickle", "cloudpickle", "shelve", "marshal")
    }
    assert importing == {"child"}
