"""Pools and jobs by the command line: made, shown, changed, removed; and the cloud that they live on."""

from __future__ import annotations

import json
import shlex
import signal
import stat
from typing import Any

from tests.support.command_line import PATIENCE, Cli, interrupted


def test_the_life_of_a_pool(cli: Cli) -> None:
    """Made as the file describes it, brought up to a new description, shrunk, stopped, started, deleted."""
    cli.write("mine/a.py", "def do_action(engine, args):\n    return 'a'\n")
    cli.write("batchflow.toml", 'target = "local"\n[pools.work]\nnodes = 1\nslots = 3\nfiles = ["mine/"]\n')
    made = cli("pool", "create", "work", "--wait", "--json")
    assert json.loads(made.stdout)["choice"] == "created"
    assert "1 agents ready of 1" in made.stderr
    shown = json.loads(cli("pool", "show", "work", "--json").stdout)
    assert (len(shown["nodes"]), shown["slots"]) == (1, 3)
    cli.write("mine/a.py", "def do_action(engine, args):\n    return 'b'\n")
    assert json.loads(cli("pool", "ensure", "--json").stdout)["choice"] == "repurposed"
    assert cli.rows("run", "a.py")[0]["value"] == "b"
    stopped = cli("pool", "stop", "work")
    assert (stopped.returncode, stopped.stdout) == (0, "")
    assert "1 agent still there, 0 tasks running\n" in stopped.stderr
    assert json.loads(cli("pool", "show", "work", "--json").stdout)["slots"] == 0
    assert cli("pool", "start", "work", "--wait").returncode == 0
    assert cli("pool", "resize", "work", "0").returncode == 0
    assert "work" in cli("pool", "list").stdout
    deleted = cli("pool", "delete", "work", "--wait")
    assert deleted.returncode == 0
    assert deleted.stderr.startswith("removing its agents, queues and files\n")
    assert cli("pool", "show", "work").returncode == 3


def test_waits_are_reported_on_stderr(cli: Cli) -> None:
    """A pool that shrinks and one whose nodes boot anew say on stderr what they wait for."""
    cli.write("batchflow.toml", 'target = "local"\n[pools.waits]\nnodes = 2\n')
    cli.write("mine/a.py", "def do_action(engine, args):\n    return 'a'\n")
    assert cli("pool", "create", "waits", "--wait").returncode == 0
    try:
        shrunk = cli("pool", "resize", "waits", "1")
        assert "1 agent still to leave, 0 tasks running there\nremoving 1 node\n" in shrunk.stderr
        reset = cli("pool", "repurpose", "waits", "--file", "mine/", "--reset")
        assert reset.returncode == 0, reset.stderr
        assert ": is told to boot anew\n" in reset.stderr
        assert ": works again\n" in reset.stderr
    finally:
        assert cli("pool", "delete", "waits").returncode == 0


def test_files_are_changed_in_place(cli: Cli) -> None:
    """`repurpose` is for the sessions from now on."""
    cli.write("one/p.py", "def do_action(engine, args):\n    return 1\n")
    cli.write("two/p.py", "def do_action(engine, args):\n    return 2\n")
    assert cli("pool", "create", "files", "--nodes", "1", "--file", "one/").returncode == 0
    try:
        assert cli("pool", "repurpose", "files", "--file", "two/").returncode == 0
        assert cli.rows("run", "--pool", "files", "p.py")[0]["value"] == 2
    finally:
        assert cli("pool", "delete", "files").returncode == 0


def test_the_life_of_a_job(cli: Cli) -> None:
    """Made, listed, shown, closed: then it takes no tasks; deleted: then it is not there."""
    assert cli("job", "create", "report", "--pool", "demo").returncode == 0
    assert cli("job", "create", "report").returncode == 5
    assert cli("job", "show", "report").stdout.startswith("job report of pool demo: open")
    assert cli("job", "close", "report").returncode == 0
    refused = cli("run", "--job", "report", "square.py", "1")
    assert (refused.returncode, refused.stdout) == (5, "")
    assert "is closed" in refused.stderr
    assert cli("job", "delete", "report").returncode == 0
    assert "report" not in cli("job", "list").stdout


def test_jobs_are_listed_with_their_counts(cli: Cli) -> None:
    """How many tasks of each wait, run and are done, while the session of somebody else is open."""
    (cli.folder / "gate").mkdir()
    tasks = (json.dumps([str(cli.folder / "gate"), number]) for number in range(3))
    running = cli.start("run", "--pool", "demo", "--job", "counted", "--session", "s", "gate.py", *tasks)
    row: dict[str, Any] | None = None
    while row is None or not (row["counts"]["running"] and row["counts"]["waiting"]):
        assert running.poll() is None
        listed = json.loads(cli("job", "list", "--pool", "demo", "--json").stdout)
        row = next((each for each in listed if each["job"] == "counted"), None)
    assert row["counts"]["sessions"] == 1
    assert row["counts"]["running"] + row["counts"]["waiting"] == 3
    heads, *rows = [line.split() for line in cli("job", "list", "--pool", "demo").stdout.splitlines()]
    assert heads[:5] == ["JOB", "STATE", "SESSIONS", "WAITING", "RUNNING"]
    assert ["counted", "open", "1"] in [cells[:3] for cells in rows]
    assert "1 open session, whose tasks are: " in cli("job", "show", "--pool", "demo", "counted").stdout
    (cli.folder / "gate" / "open").touch()
    running.communicate(timeout=PATIENCE)
    assert running.returncode == 0


def test_the_settings_of_a_cloud_are_for_its_owner_alone(alone: Cli) -> None:
    """On stdout, and in files of mode 0600 that go with it; what they hold connects."""
    process = alone.start("up", "--write-config", "cloud.toml", "--write-env", "cloud.env", "--nodes", "1")
    assert process.stdout is not None
    first = process.stdout.readline()
    place = shlex.split(first.partition("=")[2])[0]
    others = {name: alone.folder / name for name in ("cloud.toml", "cloud.env")}
    for path in (alone.folder / "runtime/batchflow/local.toml", *others.values()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert place == str(alone.folder / "runtime" / "batchflow" / "local.toml")
    assert others["cloud.env"].read_text().startswith(first)
    listed = alone("pool", "list", "--config", "cloud.toml", "--json")
    assert (listed.returncode, listed.stdout) == (0, "[]\n")
    _, said = interrupted(process)
    assert process.returncode == 0
    assert said.splitlines()[-1] == "the local cloud has ended"
    assert not any(path.exists() for path in others.values())


def test_a_cloud_shows_what_is_on_it(alone: Cli) -> None:
    """On a terminal: how long it is up, and its pools, until Ctrl-C."""
    terminal = alone.on_terminal("up", columns=60)
    terminal.until("no pools yet")
    assert alone("pool", "create", "seen", "--nodes", "1").returncode == 0
    terminal.until("seen: ")
    terminal.type("\x03")
    assert terminal.end() == 0
    assert "the local cloud has ended" in terminal.said


def test_a_port_that_is_taken(cli: Cli, alone: Cli) -> None:
    """It is named, and nothing is left."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        elsewhere = Cli(cli.folder)
        ended = elsewhere("up", "--batch-port", str(port))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"127.0.0.1:{port}: the port is taken" in ended.stderr


def test_a_cloud_that_was_killed_is_not_in_the_way(alone: Cli) -> None:
    """Its file is stale: commands say that nothing answers; the next cloud takes its place."""
    process = alone.start("up")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    ended = alone("pool", "list")
    assert ended.returncode == 2
    assert "no local cloud is up" in ended.stderr
    again = alone.start("up")
    assert again.stdout is not None
    assert again.stdout.readline()
    interrupted(again)
    assert again.returncode == 0


def test_jobs_that_a_file_describes(cli: Cli) -> None:
    """`job ensure` makes those that are not there, each in its pool; the commands find that pool."""
    cli.write("batchflow.toml", 'target = "local"\n[jobs.night]\npool = "demo"\n[jobs.day]\npool = "demo"\n')
    assert cli("job", "create", "night").returncode == 0
    ensured = [json.loads(line) for line in cli("job", "ensure", "--json").stdout.splitlines()]
    assert [(row["job"], row["pool"], row["state"]) for row in ensured] == [
        ("night", "demo", "open"),
        ("day", "demo", "open"),
    ]
    closed = json.loads(cli("job", "close", "day", "--json").stdout)
    assert (closed["job"], closed["state"]) == ("day", "closed")
    for name in ("night", "day"):
        deleted = json.loads(cli("job", "delete", name, "--pool", "demo", "--json").stdout)
        assert deleted == {"job": name, "pool": "demo", "state": "deleted"}
