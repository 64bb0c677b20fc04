"""The tasks of the examples, tested as anybody would test tasks of their own: with the pytest plugin."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchflow import Session
from node_agent.testing import RecordingEngine

EXAMPLES = Path(__file__).parents[2] / "examples"

Action = Callable[[str], Any]


@pytest.fixture(scope="session")
def batchflow_files() -> list[Path]:
    """What the tasks of all examples run with, in one folder."""
    return [
        *sorted(EXAMPLES.glob("0[2345]_*/tasks")),
        EXAMPLES / "01_hello/tasks",
        EXAMPLES / "04_input_files/inputs",
    ]


def test_greeting_names_whom_it_is_given(batchflow_action: Action, batchflow_engine: RecordingEngine) -> None:
    """It greets whom it is given."""
    assert batchflow_action("hello.py")(batchflow_engine, ["you"]) == ("Hello, you!", "no error")


def test_word_count_finds_its_input_by_name(
    batchflow_action: Action, batchflow_engine: RecordingEngine
) -> None:
    """The file is in the directory that the task runs in."""
    counted, error = batchflow_action("count_words.py")(batchflow_engine, ["b.txt"])
    assert counted == {"lines": 2, "words": 11}
    assert error == "no error"


@pytest.mark.skipif(shutil.which("java") is None, reason="there is no java on the PATH")
def test_jar_prints_an_estimate_of_pi(batchflow_action: Action, batchflow_engine: RecordingEngine) -> None:
    """The jar really runs, and its lines are the result."""
    command = ["java", "-Xmx64m", "-jar", "pi.jar", "100"]
    lines, error = batchflow_action("pi_runner.py")(batchflow_engine, command)
    assert 2 < float(lines[0]) < 4
    assert error == "no error"


async def test_tasks_give_the_same_in_a_pool(batchflow_session: Session) -> None:
    """The test ran them in its own process before."""
    assert await batchflow_session.run("hello.py", "you") == "Hello, you!"
    assert await batchflow_session.run("count_words.py", "b.txt") == {"lines": 2, "words": 11}
    assert await batchflow_session.run("square.py", "2 3") == [4, 9]
