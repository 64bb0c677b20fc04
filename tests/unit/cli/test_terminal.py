"""What moves on a terminal, what does not elsewhere, and that nothing of it is on stdout."""

from __future__ import annotations

import json
import re
import subprocess
import sys

from batchflow.cli.commands.logs import log_text
from batchflow.cli.remedies import as_commands
from tests.support.command_line import Cli, interrupted, parsed

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def plain(said: str) -> str:
    return _ESCAPE.sub("", said)


def test_a_bar_while_a_run_goes_on(cli: Cli) -> None:
    """It counts, goes away in the end, and what was done stays."""
    terminal = cli.on_terminal("run", "nap.py", "0.2", "0.2", "0.2", "--output", "out.jsonl")
    terminal.until("━")
    assert terminal.end() == 0
    assert "of 3" in terminal.said
    assert "3 succeeded" in terminal.said
    assert len(parsed((cli.folder / "out.jsonl").read_text())) == 3


def test_results_and_the_bar_on_one_terminal(cli: Cli) -> None:
    """Each result is a whole line above the bar, however long it is."""
    terminal = cli.on_terminal("run", "echo.py", json.dumps("x" * 200))
    assert terminal.end() == 0
    lines = [line for line in re.split(r"[\r\n]+", plain(terminal.said)) if line.startswith("{")]
    assert json.loads(lines[0])["value"] == ["x" * 200]


def test_bar_fits_forty_columns(cli: Cli) -> None:
    """Nothing wraps: neither the bar nor a table."""
    terminal = cli.on_terminal("run", "nap.py", "0.3", "0.3", "--output", "out.jsonl", columns=40)
    assert terminal.end() == 0
    bars = [line for line in re.split(r"[\r\n]+", plain(terminal.said)) if "of 2" in line]
    assert bars
    assert max(map(len, bars)) <= 40
    table = cli.on_terminal("pool", "show", "demo", columns=40)
    assert table.end() == 0
    rows = plain(table.said).partition("HOST")[2].split("\r\n")
    assert len(rows) >= 3
    assert max(map(len, rows)) <= 40


HOSTILE = "\x1b]0;owned\x07\x9b2J\x1b[3;5Hred\u202eder"
SHOWN = "\\x1b]0;owned\\x07\\x9b2J\\x1b[3;5Hred\\u202eder"


def test_control_characters_of_a_task_reach_no_terminal(cli: Cli) -> None:
    """What it prints, live and in `logs`, its value and its error; a pipe gets the output as it is."""
    body = f"print({HOSTILE!r}, flush=True)\n    time.sleep(0.5)\n    return {HOSTILE!r}, {HOSTILE!r}"
    source = f"import time\ndef do_action(engine, args):\n    {body}\n"
    cli.write("hostile.py", source)
    live = cli.on_terminal("run", "hostile.py", "--stream", columns=400)
    assert live.end() == 1
    assert f"[0] {SHOWN}" in live.said
    kept = cli.on_terminal("logs", "0", columns=400)
    assert kept.end() == 0
    assert f"{SHOWN}\r\n" in kept.said
    assert f"failed; {SHOWN}" in kept.said
    for said in (live.said, kept.said):
        assert "\x07" not in said
        assert "\x9b" not in said
        assert "\u202e" not in said
        assert "\x1b[3;5H" not in said
    piped = cli("logs", "0")
    assert piped.stdout == f"{HOSTILE}\n"
    assert f"failed; {SHOWN}" in piped.stderr


def test_ctrl_c_on_a_terminal(cli: Cli) -> None:
    """The line that tells how to go on survives the bar, and the cursor is shown again."""
    terminal = cli.on_terminal("run", "nap.py", "0.01", *["0.4"] * 8)
    terminal.until('"index":0')
    terminal.type("\x03")
    assert terminal.end() == 130
    assert "--resume run-" in terminal.said
    assert terminal.said.rindex("\x1b[?25h") > terminal.said.rindex("\x1b[?25l")


def test_no_bar_without_a_terminal(cli: Cli) -> None:
    """In a pipe there are plain lines, and --quiet leaves out those that only tell how far it is."""
    ended = cli("run", "square.py", "1", "--quiet")
    assert ended.stderr == "1 succeeded\n"
    assert "\x1b" not in ended.stdout + ended.stderr


def test_no_standard_streams_at_all(cli: Cli) -> None:
    """With all of them closed a run does its work, and its results are there to be read."""
    command = 'exec "$0" -m batchflow run square.py 4 <&- >&- 2>&-'
    ended = subprocess.run(
        ["sh", "-c", command, sys.executable], cwd=cli.folder, env=cli.environment, check=False, timeout=60
    )
    assert ended.returncode in (0, 141)
    assert [row["value"] for row in cli.rows("results")] == [16]


def test_a_live_view_of_a_pool(cli: Cli) -> None:
    """`top` draws nodes, slots, queue and rate until q or Ctrl-C, and gives the screen back."""
    terminal = cli.on_terminal("top", "demo", "--interval", "0.2")
    terminal.until("NODE")
    terminal.until("queued")
    assert "LOAD" in terminal.said  # the last column, at 80 characters
    terminal.type("q")
    assert terminal.end() == 0
    assert "\x1b[?1049l" in terminal.said


def test_a_view_of_a_pool_for_programs(cli: Cli) -> None:
    """A line, or with --json an object, for each look."""
    line = cli("top", "demo", "--once").stdout
    assert line.startswith("demo: 2/2 nodes, ")
    seen = json.loads(cli("top", "--once", "--json").stdout)
    assert (seen["pool"], len(seen["nodes"]), seen["slots"], seen["dead"]) == ("demo", 2, 2, 0)


def test_line_of_a_log_is_text_on_a_terminal() -> None:
    """When, how grave, what, its fields, then a traceback; what is no JSON stays as it is."""
    line = (
        '{"at": "2026-11-30T12:00:00.125+00:00", "level": "WARNING", "event": "drain", "logger": "a",'
        ' "pid": 1, "grace": 3.5, "why": "asked", "exception": "Traceback"}'
    )
    text = log_text(line)
    assert text.endswith("  WARNING  drain  grace=3.5  why=asked\nTraceback")
    assert ":00.125" in text
    for other in ("plain", "{}", "[1]", '{"at": 1, "level": 2, "event": 3}'):
        assert log_text(other) == other


def test_the_logs_of_a_node(cli: Cli) -> None:
    """By the beginning of its host name: the JSON lines that its agent wrote."""
    host = json.loads(cli("pool", "show", "demo", "--json").stdout)["nodes"][0]["host"]
    process = cli.start("logs", host, "--pool", "demo", "--follow")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["event"]
    _, said = interrupted(process)
    assert (process.returncode, said) == (130, "batchflow: interrupted\n")


def test_the_logs_of_a_node_whose_pool_is_gone(cli: Cli) -> None:
    """They are found by the node's id, for a month; what is not there is named."""
    assert cli("pool", "create", "gone", "--nodes", "1", "--wait").returncode == 0
    node = json.loads(cli("pool", "show", "gone", "--json").stdout)["nodes"][0]["id"]
    assert cli("pool", "stop", "gone").returncode == 0
    assert cli("pool", "delete", "gone").returncode == 0
    said = cli("logs", node, "--pool", "gone").stdout
    assert "agent_exit" in {json.loads(line)["event"] for line in said.splitlines()}
    unknown = cli("logs", "nobody", "--pool", "gone")
    assert (unknown.returncode, "there is no pool 'gone'" in unknown.stderr) == (3, True)


def test_explain_shows_the_state_of_a_pool(cli: Cli) -> None:
    """`explain` in words, and as an object."""
    assert "pool 'demo': 2 of 2 nodes" in cli("explain", "demo").stdout
    assert json.loads(cli("explain", "--json").stdout)["facts"]["slots"] == 2


def test_remedies_are_commands(cli: Cli) -> None:
    """What the library tells to call, the program tells to type."""
    assert cli("pool", "create", "empty", "--nodes", "0").returncode == 0
    try:
        assert "what to do: batchflow pool resize empty 2" in cli("explain", "empty").stdout
        assert cli("doctor").returncode == 1
    finally:
        assert cli("pool", "delete", "empty").returncode == 0
    assert as_commands("await pool.stop(), then pool.start()", "a") == (
        "batchflow pool stop a, then batchflow pool start a"
    )
    assert (
        as_commands("pool.repurpose(files, reset=True, spec=...)") == "batchflow pool repurpose POOL --reset"
    )
    assert as_commands("await session.update_files(files)") == "await session.update_files(files)"


def test_help_and_completion_load_nothing_heavy(alone: Cli) -> None:
    """The client, the SDKs and rich are loaded by the commands that need them."""
    ended = alone("--help", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert ended.returncode == 0
    for name in ("azure", "aiohttp", "rich", "anyio", "batchflow.client", "orjson"):
        assert not re.search(rf"\| +{name}\b", ended.stderr), name
    assert "_BATCHFLOW_COMPLETE" in alone("completion", "bash").stdout
    assert json.loads(alone("completion", "fish", "--json").stdout)["shell"] == "fish"
    for group in ((), ("pool",), ("job",)):
        assert "..." not in alone(*group, "--help").stdout.partition("Commands:")[2]
    completed = alone(
        env={"_BATCHFLOW_COMPLETE": "bash_complete", "COMP_WORDS": "batchflow pool re", "COMP_CWORD": "2"}
    )
    assert completed.stdout.split() == ["plain,repurpose", "plain,resize"]
