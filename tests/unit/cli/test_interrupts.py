"""A run that is interrupted, however that is, goes on: no result is missing, and none is there twice."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.command_line import PATIENCE, Cli, interrupted, parsed


@pytest.fixture
def gate(cli: Cli) -> Path:
    """Tasks of gate.py wait until the file `open` is there."""
    folder = cli.folder / "gate"
    folder.mkdir()
    return folder


def gated(gate: Path, count: int) -> list[str]:
    """Inputs for gate.py: the first two go through, the others wait."""
    return [f'["{gate if number > 1 else gate.parent / "through"}", {number}]' for number in range(count)]


def begin(cli: Cli, gate: Path, count: int = 6) -> subprocess.Popen[str]:
    """A run of which two results have come, and whose other tasks wait."""
    through = gate.parent / "through"
    through.mkdir()
    (through / "open").touch()
    return cli.start("run", "--session", f"run-{os.urandom(4).hex()}", "gate.py", *gated(gate, count))


def read(process: subprocess.Popen[str], count: int) -> str:
    assert process.stdout is not None
    return "".join(process.stdout.readline() for _ in range(count))


def name_in(said: str) -> str:
    return said.split("--resume ")[1].split()[0]


def numbers(text: str) -> list[int]:
    return [row["index"] for row in parsed(text)]


def test_ctrl_c_once_leaves_in_order(cli: Cli, gate: Path) -> None:
    """It says what goes on, and going on prints what was missing, each result once."""
    process = begin(cli, gate)
    first = read(process, 2)
    rest, said = interrupted(process)
    assert process.returncode == 130
    assert "2 of 6 have a result, 4 were sent and go on in the pool" in said
    (gate / "open").touch()
    ended = cli("run", "--resume", name_in(said))
    assert ended.returncode == 0, ended.stderr
    assert sorted(numbers(first + rest) + numbers(ended.stdout)) == [0, 1, 2, 3, 4, 5]
    assert sorted((gate / "began").read_text().split()) == ["2", "3", "4", "5"], "each ran once"
    assert numbers(cli("results", name_in(said)).stdout) == [0, 1, 2, 3, 4, 5]


def test_ctrl_c_twice_leaves_at_once(cli: Cli, gate: Path) -> None:
    """The second does not wait for anything, and the run goes on all the same."""
    process = begin(cli, gate)
    first = read(process, 2)
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    rest, said = interrupted(process)
    assert process.returncode == 130
    (gate / "open").touch()
    name = name_in(said) if "--resume" in said else cli.folder.joinpath("state/batchflow/runs").iterdir()
    name = name if isinstance(name, str) else next(name).name
    ended = cli("run", "--resume", name)
    assert sorted(numbers(first + rest) + numbers(ended.stdout)) == [0, 1, 2, 3, 4, 5]


def test_killed_run_is_resumed(cli: Cli, gate: Path) -> None:
    """SIGKILL leaves nothing undone that going on does not do; the output file is whole afterwards."""
    process = begin(cli, gate)
    first = read(process, 2)
    process.kill()
    process.communicate(timeout=PATIENCE)
    (gate / "open").touch()
    name = next(cli.folder.joinpath("state/batchflow/runs").iterdir()).name
    ended = cli("run", "--resume", name, "--output", "all.jsonl")
    assert ended.returncode == 0, ended.stderr
    assert numbers(first) == [0, 1]
    assert numbers((cli.folder / "all.jsonl").read_text()) == [0, 1, 2, 3, 4, 5]


def test_cancelled_run_ends_its_tasks(cli: Cli, gate: Path) -> None:
    """From another terminal: what runs is killed, what waits never runs, and whoever waits sees it."""
    process = begin(cli, gate)
    read(process, 2)
    name = next(cli.folder.joinpath("state/batchflow/runs").iterdir()).name
    cancelled = cli("cancel", name)
    assert (cancelled.returncode, cancelled.stdout) == (0, "")
    rest, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, said
    assert [row["status"] for row in parsed(rest)] == ["cancelled"] * 4
    assert "2 succeeded, 4 cancelled" in said


def test_terminated_run_leaves_in_order(cli: Cli, gate: Path) -> None:
    """SIGTERM is like Ctrl-C, with its own exit code."""
    process = begin(cli, gate)
    read(process, 2)
    process.terminate()
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert "--resume" in said
    (gate / "open").touch()


def test_second_process_of_a_run_is_refused(cli: Cli, gate: Path) -> None:
    """The second is told that the run is in the hands of another."""
    process = begin(cli, gate)
    read(process, 2)
    name = next(cli.folder.joinpath("state/batchflow/runs").iterdir()).name
    second = cli("run", "--resume", name)
    assert second.returncode == 5
    assert "another process" in second.stderr
    (gate / "open").touch()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0


def test_closed_stdout_ends_the_run(cli: Cli, gate: Path) -> None:
    """A closed pipe ends the run in order, without a traceback, and nothing is lost."""
    process = begin(cli, gate)
    first = read(process, 2)
    assert process.stdout is not None
    process.stdout.close()
    (gate / "open").touch()
    assert process.stderr is not None
    with process.stderr as stderr:
        said = stderr.read()
    assert process.wait(timeout=PATIENCE) == 141
    assert "stdout was closed" in said
    assert "Traceback" not in said
    assert cli("run", "--resume", name_in(said)).returncode == 0
    assert numbers(first) == [0, 1]
    assert numbers(cli("results").stdout) == [0, 1, 2, 3, 4, 5]


def test_full_disk_ends_the_run(cli: Cli) -> None:
    """What cannot be written is said, with its own exit code, and is still there to be read."""
    with open("/dev/full", "w") as full:
        process = cli.start("run", "square.py", "3", stdout=full)
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 74
    assert "cannot write to stdout: No space left on device" in said
    assert numbers(cli("results").stdout) == [0]


def test_a_local_cloud_that_is_interrupted(alone: Cli) -> None:
    """What runs may end; going on makes a new cloud and runs what is missing."""
    task = "import time\ndef do_action(engine, args):\n    time.sleep(args[0])\n    return args[0]\n"
    alone.write("nap.py", task)
    inputs = ["0.01", "0.01", *["0.5"] * 12]
    process = alone.start("run", "--local", "--session", "own", "nap.py", *inputs)
    first = read(process, 2)
    rest, said = interrupted(process)
    assert process.returncode == 130
    assert "the local cloud ends with this command" in said
    ended = alone("run", "--resume", "own")
    assert ended.returncode == 0, ended.stderr
    assert sorted(numbers(first + rest) + numbers(ended.stdout)) == [*range(14)]


def test_the_disk_of_the_output_file_is_full(cli: Cli) -> None:
    """The file is named, and `results` has what was not written."""
    ended = cli("run", "square.py", "3", "-o", "/dev/full", "--session", "full")
    assert ended.returncode == 74, ended.stderr
    assert "cannot write to /dev/full: No space left on device" in ended.stderr
    assert "1 of 1 have a result. All that has come: batchflow results full" in ended.stderr
    assert "interrupted" not in ended.stderr
    assert numbers(cli("results", "full").stdout) == [0]


def test_a_file_is_left_alone_by_a_run_that_does_not_begin(cli: Cli) -> None:
    """What was in the output file is there after a run whose pool does not exist."""
    path = cli.write("out.jsonl", "mine\n")
    assert cli("run", "--pool", "nowhere", "square.py", "3", "-o", "out.jsonl").returncode == 3
    assert path.read_text() == "mine\n"
