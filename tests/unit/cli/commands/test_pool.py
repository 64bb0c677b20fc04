"""`batchflow pool` makes, shows, changes and removes pools."""

from __future__ import annotations

import json

from tests.support.command_line import Cli


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
