"""A task runs here once more: one of a run, one that failed in any session, under a debugger."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.support.command_line import TASKS, Cli, Inside
from tests.support.wheels import make_wheel, requirements_file

FAILS = (
    "import os, sys\n"
    "def do_action(engine, args):\n"
    "    doubled = args[0] * 2\n"
    "    engine.log(f'doubled {doubled} as {engine.task_id}')\n"
    "    if 'MENDED' in os.environ:\n"
    "        return doubled\n"
    "    raise ValueError(f'cannot use {doubled}')\n"
)
WAITS = (
    "import os, time\n"
    "def do_action(engine, args):\n"
    "    engine.log(f'process {os.getpid()}')\n"
    "    time.sleep(600)\n"
)


def test_failed_task_is_repeated_with_what_it_had(cli: Cli, inside: Inside) -> None:
    """Its file here has changed meanwhile: the one that it ran with is fetched, as are its packages."""
    name = f"r{cli.folder.name[-20:]}"
    make_wheel(cli.folder, "again_u", "1.0", "VALUE = 7\n")
    requirements_file(cli.folder, "again_u")
    cli.write("fails.py", f"import again_u\n{FAILS}")
    options = ("--pool", "demo", "--session", name, "--requirements", "requirements.txt")
    assert inside(cli, "run", "fails.py", "7", "8", *options).returncode == 1
    cli.write("fails.py", "def do_action(engine, args):\n    return 'another file'\n")
    again = cli.outside("replay", "1")
    assert again.returncode == 1
    assert "log: doubled 16 as 1" in again.stderr
    assert "ValueError: cannot use 16" in again.stderr
    assert "node_agent" not in again.stderr

    kept = [json.loads(line) for line in inside(cli, "replay", "--json").stdout.splitlines()]
    (one,) = [task for task in kept if task["session"] == name and task["task"] == "0"]
    assert one["error"] == "ValueError: cannot use 14"
    mended = cli.outside("replay", one["id"], "--json", env={"MENDED": "1"})
    assert json.loads(mended.stdout) == {"status": "succeeded", "value": 14}
    unknown = inside(cli, "replay", "nonsense")
    assert (unknown.returncode, "no failed task 'nonsense'" in unknown.stderr) == (3, True)


def test_debugger_stops_at_the_first_line_and_where_it_fails(cli: Cli, inside: Inside) -> None:
    cli.write("fails.py", FAILS)
    assert inside(cli, "run", "fails.py", "7", "--pool", "demo").returncode == 1
    terminal = cli.on_terminal("replay", "0", "--pdb")
    terminal.until("-> doubled = args[0] * 2")
    terminal.type("continue\n")
    terminal.until("ValueError: cannot use 14")
    terminal.until("-> raise ValueError")
    terminal.type("p doubled + 100\n")
    terminal.until("114")
    terminal.type("quit\n")
    assert terminal.end() == 1


def test_input_that_succeeded_is_repeated_with_the_files_as_they_are(cli: Cli, inside: Inside) -> None:
    """What asks the command to end reaches the task, which may not go on without it."""
    cli.write("mine.py", TASKS["square.py"])
    assert inside(cli, "run", "mine.py", "6", "--pool", "demo").returncode == 0
    again = cli.outside("replay", "0", "--folder", "kept")
    assert (again.stdout, again.returncode) == ("36\n", 0)
    assert (cli.folder / "kept" / "files" / "mine.py").is_file()
    assert "the run's files are used as they are now" in again.stderr
    cli.write("mine.py", WAITS)
    with cli.start("replay", "0") as waiting:
        assert waiting.stderr is not None
        told = next(line for line in waiting.stderr if "process " in line)
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(timeout=30) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.rpartition(" ")[2]), 0)
