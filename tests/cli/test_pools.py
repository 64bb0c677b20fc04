"""Pools and jobs by the command line: made, shown, changed, removed; and the cloud that they live on."""

from __future__ import annotations

import json
import shlex
import signal
import stat

from tests.cli.support import PATIENCE, Cli, interrupted


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
    assert json.loads(cli("pool", "show", "work", "--json").stdout)["slots"] == 0
    assert cli("pool", "start", "work", "--wait").returncode == 0
    assert cli("pool", "resize", "work", "0").returncode == 0
    assert "work" in cli("pool", "list").stdout
    assert cli("pool", "delete", "work").returncode == 0
    assert cli("pool", "show", "work").returncode == 3


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
