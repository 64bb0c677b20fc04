"""What mypy and pyright make of the public API, from the side of its users."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import batchflow
from batchflow.results import Results
from batchflow.streams import EventStream, ResultStream

ROOT = Path(__file__).parents[2]
API = Path(__file__).parent / "api.py"

pytestmark = pytest.mark.timeout(300)

needs_pyright = pytest.mark.skipif(
    importlib.util.find_spec("basedpyright") is None, reason="basedpyright is not installed"
)


def pyright(*arguments: str) -> dict[str, Any]:
    """What it reports: basedpyright, which brings its own node and, set up so, judges as pyright does.

    It looks for packages where the first `python` of the path does.
    """
    finished = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--outputjson", *arguments],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert finished.stdout, finished.stderr
    report: dict[str, Any] = json.loads(finished.stdout)
    return report


def is_public(name: str) -> bool:
    """Whether it is what `batchflow` exports, or belongs to it, or what these give."""
    classes = [getattr(batchflow, exported) for exported in batchflow.__all__]
    homes = {f"{each.__module__}.{each.__name__}" for each in (*classes, Results, ResultStream, EventStream)}
    return any(name == home or name.startswith(f"{home}.") for home in homes) or name.count(".") == 1


def test_mypy_accepts_the_api_and_finds_every_mistake() -> None:
    """Every type is as asserted."""
    finished = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", str(API)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


@needs_pyright
def test_pyright_accepts_the_api_and_finds_every_mistake(tmp_path: Path) -> None:
    """Every type is as asserted."""
    settings = {
        "include": [str(API)],
        "pythonVersion": "3.11",
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "strict",
        "enableTypeIgnoreComments": False,
        "reportUnnecessaryTypeIgnoreComment": "error",
        "reportUnusedExpression": "none",
    }
    project = tmp_path / "pyrightconfig.json"
    project.write_text(json.dumps(settings))
    found = pyright("--project", str(project))
    said = [
        f"{item['range']['start']['line'] + 1}: {item.get('rule')}: {item['message']}"
        for item in found["generalDiagnostics"]
        if item["severity"] == "error"
    ]
    assert said == []


@needs_pyright
def test_the_public_types_are_complete() -> None:
    """No public name lacks a type that a checker can see without guessing."""
    report = pyright("--verifytypes", "batchflow", "--ignoreexternal")
    assert report["generalDiagnostics"] == []
    found = report["typeCompleteness"]["symbols"]
    public = {symbol["name"]: symbol for symbol in found if is_public(symbol["name"])}
    assert {f"batchflow.{name}" for name in batchflow.__all__} <= set(public)
    unclear = {
        name: [item["message"] for item in symbol["diagnostics"]]
        for name, symbol in public.items()
        if not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]
    }
    assert unclear == {}


def test_the_package_says_that_it_is_typed() -> None:
    """`py.typed` is there, or no checker looks."""
    assert (ROOT / "batchflow" / "py.typed").is_file()
