"""The engine, and its double for tests."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from batchflow.engine import JavaError
from node_agent.testing import engine

if TYPE_CHECKING:
    from pathlib import Path


def test_a_test_can_look_at_what_a_task_said(tmp_path: Path) -> None:
    """Logs, steps and files are recorded, cancellation is asked for by the test."""
    made = engine(tmp_path, task_id="7")
    made.log({"a": 1})
    made.progress(1, 4)
    made.progress(2)
    (tmp_path / "outputs/direct.txt").write_text("x")
    assert made.logs == ["{'a': 1}"]
    assert made.steps == [(1, 4), (2, None)]
    assert made.uploaded == ["direct.txt"]
    assert not made.cancelled
    made.cancel()
    assert made.cancelled
    assert (made.task_id, made.attempt, made.working_dir, made.bundle_dir) == ("7", 1, tmp_path, tmp_path)
    assert repr(made) == "<engine of task '7', attempt 1>"


def test_upload_keeps_a_copy_as_the_file_is_now(tmp_path: Path) -> None:
    """What is written to the file afterwards does not reach the copy."""
    made = engine(tmp_path)
    source = tmp_path / "report.csv"
    source.write_text("now")
    assert made.upload("report.csv" if os.getcwd() == str(tmp_path) else source) == "report.csv"
    assert made.upload(source, "deep/er.csv") == "deep/er.csv"
    source.write_text("later")
    assert (made.outputs / "report.csv").read_text() == "now"
    assert made.uploaded == ["deep/er.csv", "report.csv"]
    assert made.upload(made.outputs / "report.csv") == "report.csv"
    assert (made.outputs / "report.csv").read_text() == "now"


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", "."])
def test_upload_refuses_names_outside_the_folder(tmp_path: Path, name: str) -> None:
    """Traversal and absolute names raise, and nothing is written."""
    source = tmp_path / "s"
    source.write_text("x")
    made = engine(tmp_path)
    with pytest.raises(ValueError, match="does not stay"):
        made.upload(source, name)
    assert made.uploaded == []


def test_an_engine_does_nothing_after_its_task(tmp_path: Path) -> None:
    """A thread that outlives its task is told so."""
    made = engine(tmp_path)
    made.close()
    failures: list[RuntimeError] = []

    def late() -> None:
        try:
            made.log("late")
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=late)
    thread.start()
    thread.join(10)
    assert "is over" in str(failures[0])


def test_no_java_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text says what to do."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JavaError, match=r"no Java on this node.*start task"):
        engine(tmp_path).java_runner("x.jar")


async def test_programs_really_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for java is run in the folder, by both ways of calling."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/java").write_text(f'#!/bin/sh\necho "$@"\npwd >&2\n# {sys.executable}\n')
    (tmp_path / "bin/java").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/bin:/usr/bin")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    expected = ["-jar x.jar 1", str(tmp_path)]
    assert engine(tmp_path).java_runner("x.jar", 1) == expected
    assert await engine(tmp_path).run_java("x.jar", 1) == expected
