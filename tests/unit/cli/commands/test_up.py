"""`batchflow up` runs a local cloud, and keeps its settings for its owner."""

from __future__ import annotations

import shlex
import signal
import stat

from tests.support.command_line import PATIENCE, TASKS, Cli, interrupted


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
    """On a terminal: its addresses without keys, how long it is up, and its pools, until Ctrl-C."""
    terminal = alone.on_terminal("up", columns=60)
    terminal.until("no pools yet")
    assert "Batch         http://127.0.0.1:" in terminal.said
    assert "KEY" not in terminal.said
    assert "AccountKey" not in terminal.said
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


def test_a_cloud_that_was_killed_is_told_by_its_run_and_is_not_in_the_way(alone: Cli) -> None:
    """The run says once what to do. The file is stale, so commands say that nothing answers; the next cloud
    takes its place."""
    alone.write("nap.py", TASKS["nap.py"])
    process = alone.start("up")
    assert process.stdout is not None
    process.stdout.readline()
    assert alone("pool", "create", "demo", "--file", "nap.py", "--nodes", "1").returncode == 0
    run = alone.start("run", "--pool", "demo", "--session", "kept", "nap.py", "0", "60")
    assert run.stdout is not None
    assert '"value":0' in run.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    _, said = run.communicate(timeout=PATIENCE)
    assert run.returncode == 4
    assert said.count("the local cloud of `batchflow up` has ended") == 1
    assert "batchflow run --resume kept" in said
    assert "warning" not in said
    ended = alone("pool", "list")
    assert ended.returncode == 2
    assert "no local cloud is up" in ended.stderr
    again = alone.start("up")
    assert again.stdout is not None
    assert again.stdout.readline()
    interrupted(again)
    assert again.returncode == 0
