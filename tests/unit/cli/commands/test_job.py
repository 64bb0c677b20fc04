"""`batchflow job` makes, lists, shows, closes and deletes jobs."""

from __future__ import annotations

import json
from typing import Any

from tests.support.command_line import PATIENCE, Cli, Inside
from tests.support.wheels import make_wheel, requirements_file


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
    assert "1 open session; tasks: " in cli("job", "show", "--pool", "demo", "counted").stdout
    (cli.folder / "gate" / "open").touch()
    running.communicate(timeout=PATIENCE)
    assert running.returncode == 0
    said = cli("job", "show", "--pool", "demo", "counted").stdout
    assert "0 open sessions; tasks: 0 waiting, 0 running, 3 succeeded, 0 failed, 0 cancelled" in said


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


def test_requirements_of_a_job_are_locked_when_it_is_made_and_those_of_its_runs(
    cli: Cli, inside: Inside
) -> None:
    """What cannot be resolved makes no job; afterwards the file is needed no more."""
    make_wheel(cli.folder, "jobs_u", "1.0", "VERSION = 1\n")
    file = requirements_file(cli.folder, "absent_u")
    create = ("job", "create", "packed", "--pool", "demo", "--requirements", "requirements.txt")
    refused = inside(cli, *create)
    assert (refused.returncode, "absent-u" in refused.stderr) == (2, True)
    requirements_file(cli.folder, "jobs_u")
    assert inside(cli, *create).returncode == 0
    file.unlink()
    cli.write("version.py", "import jobs_u\ndef do_action(engine, args): return jobs_u.VERSION\n")
    (row,) = cli.rows("run", "version.py", "--pool", "demo", "--job", "packed", "--json", "1")
    assert row["value"] == 1
