"""Workflows of files: their tasks in an order in which they can be sent, or what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from batchflow.cli.sources.tables import Item
from batchflow.cli.sources.workflows import from_workflow, is_workflow, part_of
from batchflow.errors import ConfigurationError
from tests.support.command_line import Cli
from tests.support.waiting import eventually_blocking

TOML = """
files = ["tasks"]
[[task]]
command = "sum.py"
args = [[{"$task" = "a"}, {"$task" = "b"}]]
[[task]]
id = "a"
command = "square.py"
args = 2
[[task]]
id = "b"
command = "square.py"
args = [3]
after = "a"
"""


def lines(*tasks: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(task)}\n" for task in tasks)


def test_tasks_stand_after_those_that_they_wait_for(tmp_path: Path) -> None:
    """In TOML and in JSON lines, in whatever order they are written."""
    path = tmp_path / "w.toml"
    path.write_text(TOML)
    workflow = from_workflow(str(path))
    assert workflow.files == [str(tmp_path / "tasks")]
    expected = [
        Item("square.py", [2], [], "a"),
        Item("square.py", [3], [0], "b"),
        Item("sum.py", [[{"$task": 0}, {"$task": 1}]], [0, 1], None),
    ]
    assert workflow.items == expected
    path = tmp_path / "w.jsonl"
    path.write_text(
        lines(
            {"command": "sum.py", "args": [[{"$task": "a"}, {"$task": "b"}]]},
            {"id": "a", "command": "square.py", "args": 2},
            {"id": "b", "command": "square.py", "args": [3], "after": ["a"]},
        )
    )
    assert from_workflow(str(path)).items == expected
    assert is_workflow(expected)
    assert not is_workflow(expected[:1])


def test_a_part_of_a_workflow_has_the_values_of_the_rest() -> None:
    """What succeeded is not run again."""
    items = [Item("x.py", [1], [], "a"), Item("x.py", [{"$task": 0}], [0], "b")]
    items.append(Item("x.py", [[{"$task": 1}]], [0, 1], "c"))
    assert part_of(items, [1, 2], {0: "v"}) == [
        Item("x.py", ["v"], [], "b"),
        Item("x.py", [[{"$task": 0}]], [0], "c"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"command": "x.py", "after": "a"}', "w.jsonl:1: it waits for 'a', which is no task"),
        ('{"command": "x.py", "args": {"$task": "a"}}', "it waits for 'a'"),
        ('{"command": "x.py", "args": {"$task": 1}}', "has the id of a task"),
        ('{"id": "a", "command": "x.py", "after": "a"}', "wait for each other in a circle: a"),
        (
            '{"id": "a", "command": "x.py", "after": "b"}\n{"id": "b", "command": "x.py", "after": "a"}',
            "in a circle: a, b",
        ),
        (
            '{"id": "a", "command": "x.py"}\n{"id": "a", "command": "x.py"}',
            "w.jsonl:2: the id 'a' is that of .*w.jsonl:1, too",
        ),
        ('{"id": "a"}', "a task has a command"),
        ('{"command": "x.py", "id": 1}', "id is 1; a text is needed"),
        ('{"command": "x.py", "after": [1]}', "after is"),
        ('{"command": "x.py", "afer": []}', "unknown key 'afer'; did you mean 'after'"),
        ("{", "w.jsonl:1: not JSON"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    """File, line, and what is needed."""
    path = tmp_path / "w.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        from_workflow(str(path))


def test_a_workflow_runs_and_goes_on(cli: Cli) -> None:
    """Each task after its inputs; one that fails ends what waits for it, with exit code 1."""
    cli.write(
        "w.jsonl",
        lines(
            {"id": "total", "command": "echo.py", "args": [{"$task": "a"}, {"$task": "b"}]},
            {"id": "a", "command": "square.py", "args": [2]},
            {"id": "b", "command": "square.py", "args": [{"$task": "a"}]},
            {"id": "bad", "command": "square.py", "args": ["x"]},
            {"id": "last", "command": "echo.py", "after": ["bad", "a"]},
        ),
    )
    ended = cli("run", "--pool", "demo", "--workflow", "w.jsonl", "--session", "flow")
    assert ended.returncode == 1, ended.stderr
    rows = {row["task"]: row for row in map(json.loads, ended.stdout.splitlines())}
    assert rows["total"]["value"] == [4, 16]
    assert (rows["bad"]["status"], rows["last"]["kind"]) == ("failed", "DependencyFailed")
    again = cli("run", "--failed-of", "flow")
    rows = {row["task"]: row for row in map(json.loads, again.stdout.splitlines())}
    assert sorted(rows) == ["bad", "last"]
    assert "it waited for task" in rows["last"]["error"]
    refused = cli("submit", "--workflow", "w.jsonl")
    assert refused.returncode == 2
    assert "batchflow run --workflow FILE" in refused.stderr


def test_a_run_that_was_killed_goes_on_with_its_workflow(cli: Cli) -> None:
    """What has a result is not run again: its value is passed on."""
    cli.write(
        "w.jsonl",
        lines(
            {"id": "a", "command": "square.py", "args": [2]},
            {"id": "b", "command": "gate.py", "args": [str(cli.folder), {"$task": "a"}]},
            {"id": "c", "command": "echo.py", "args": [{"$task": "a"}, {"$task": "b"}]},
        ),
    )
    began = cli.folder / "began"
    with cli.start("run", "--pool", "demo", "--workflow", "w.jsonl", "--session", "killed") as run:
        eventually_blocking(lambda: began.exists() and began.read_text() == "4\n")
        run.kill()
    (cli.folder / "open").touch()
    ended = cli("run", "--resume", "killed")
    assert ended.returncode == 0, ended.stderr
    rows = {row["task"]: row for row in map(json.loads, cli("results", "killed").stdout.splitlines())}
    assert {name: row["value"] for name, row in rows.items()} == {"a": 4, "b": 4, "c": [4, 4]}


def test_a_task_of_a_workflow_may_expire(tmp_path: Path) -> None:
    """Its seconds stay with it when only some of the tasks run again; what is none is refused."""
    path = tmp_path / "w.jsonl"
    path.write_text(lines({"id": "a", "command": "x.py"}, {"command": "y.py", "after": "a", "expires": 2.5}))
    items = from_workflow(str(path)).items
    assert [item.expires for item in items] == [None, 2.5]
    assert [item.expires for item in part_of(items, [1], {0: 1})] == [2.5]
    path.write_text(lines({"command": "x.py", "expires": "soon"}))
    with pytest.raises(ConfigurationError, match=r"w\.jsonl:1: expires is 'soon'"):
        from_workflow(str(path))
