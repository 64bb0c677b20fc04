"""The supervisor with real processes: crashes, signals, and what is left behind."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from node_agent.scheduling.crash_history import MOST, CrashCount, after_crash
from node_agent.supervision.crash_record import (
    CrashRecord,
    RunningRecord,
    boot_id,
    read_crashes,
    read_running,
    write_crashes,
)
from node_agent.supervision.supervisor import EX_CONFIG, SITE_GONE, STOPPED_HARD
from node_agent.system.json_log import JsonLines
from tests.support.processes import is_alive
from tests.support.waiting import eventually_blocking

PATIENCE = 20.0
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a supervisor whose agent behaves as the name says."""
    started: list[subprocess.Popen[bytes]] = []

    def start(behaviour: str, **environment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.support.agent_process", str(tmp_path), behaviour]
        process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def diary(directory: Path) -> list[list[str]]:
    """The lines that the agents wrote, each as words."""
    path = directory / "diary"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def noted(directory: Path, word: str) -> bool:
    return any(line[0] == word for line in diary(directory))


def test_a_crashed_agent_is_started_again(start: Start, tmp_path: Path) -> None:
    """In another process; when that one is done, so is the supervisor."""
    assert start("crash_once").wait(PATIENCE) == 0
    lives = diary(tmp_path)
    assert len(lives) == 2
    assert lives[0][1] != lives[1][1]


def test_an_unusable_configuration_ends_the_supervisor(start: Start, tmp_path: Path) -> None:
    """Trying again would not help."""
    assert start("refuse").wait(PATIENCE) == EX_CONFIG
    assert len(diary(tmp_path)) == 1


def test_nothing_of_a_killed_agent_survives(start: Start, tmp_path: Path) -> None:
    """Neither its children nor an orphan in a session of its own; and another agent starts."""
    start("leave_orphans")
    eventually_blocking(lambda: noted(tmp_path, "waiting") and noted(tmp_path, "orphan"))
    lines = diary(tmp_path)
    agent = int(lines[0][1])
    left = [int(line[1]) for line in lines if line[0] in ("child", "orphan")]
    assert len(left) == 2
    os.kill(agent, signal.SIGKILL)
    eventually_blocking(lambda: not any(is_alive(pid) for pid in left))
    eventually_blocking(lambda: sum(line[0] == "life" for line in diary(tmp_path)) == 2)


def test_nothing_survives_a_killed_supervisor(start: Start, tmp_path: Path) -> None:
    """The agent learns of it from the kernel, and takes everything below it along."""
    supervisor = start("leave_orphans")
    eventually_blocking(lambda: noted(tmp_path, "waiting") and noted(tmp_path, "orphan"))
    lines = diary(tmp_path)
    pids = [int(lines[0][1]), *(int(line[1]) for line in lines if line[0] in ("child", "orphan"))]
    supervisor.kill()
    eventually_blocking(lambda: not any(is_alive(pid) for pid in pids))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    """It is handed on as SIGTERM; an agent that ends well makes a clean exit."""
    supervisor = start("drain")
    eventually_blocking(lambda: noted(tmp_path, "waiting"))
    supervisor.send_signal(number)
    assert supervisor.wait(PATIENCE) == 0
    assert noted(tmp_path, "term")


def test_the_second_signal_is_hard(start: Start, tmp_path: Path) -> None:
    """Whatever the agent is doing."""
    supervisor = start("ignore")
    eventually_blocking(lambda: noted(tmp_path, "waiting"))
    supervisor.terminate()
    eventually_blocking(lambda: noted(tmp_path, "term"))
    supervisor.terminate()
    _, said = supervisor.communicate(timeout=PATIENCE)
    assert supervisor.returncode == STOPPED_HARD
    assert said.count(b'"agent_killed"') == 1
    assert not is_alive(int(diary(tmp_path)[0][1]))


def test_a_drain_has_its_time(start: Start, tmp_path: Path) -> None:
    """An agent that does not come to an end is killed."""
    supervisor = start("ignore", STOP_WITHIN="0.3")
    eventually_blocking(lambda: noted(tmp_path, "waiting"))
    supervisor.terminate()
    assert supervisor.wait(PATIENCE) == STOPPED_HARD


def test_what_ran_when_the_agent_died_is_remembered(start: Start, tmp_path: Path) -> None:
    """Once alone, once in the company of two others."""
    assert start("die_at_work").wait(PATIENCE) == 0
    deaths = read_crashes(tmp_path / "deaths.json", boot_id())
    found = {uid: (each.alone, each.in_company) for uid, each in deaths.items()}
    assert found == {"abc123:7": (1, 1), "abc123:8": (0, 1), "abc123:9": (0, 1)}


def test_an_unfit_agent_is_followed_by_another_one(start: Start, tmp_path: Path) -> None:
    """It did not die: nothing that ran is suspected of anything."""
    supervisor = start("unfit")
    _, said = supervisor.communicate(timeout=PATIENCE)
    assert supervisor.returncode == 0
    assert said.count(b'"agent_unfit"') == 2
    assert len(diary(tmp_path)) == 3
    assert read_crashes(tmp_path / "deaths.json", boot_id()) == {}


def test_a_supervisor_whose_own_files_are_gone_ends(tmp_path: Path) -> None:
    """No other agent can begin; Batch starts the task again, which unpacks them."""
    root = Path(__file__).parents[3]
    for package in ("node_agent", "batchflow"):
        shutil.copytree(root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    program = f"""
import shutil, sys
from node_agent.supervision.supervisor import UNFIT, Supervisor
def agent():
    shutil.rmtree({str(tmp_path / "node_agent")!r})
    return UNFIT
sys.exit(Supervisor(agent, {str(tmp_path)!r}, 60.0).run())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, timeout=PATIENCE, check=False
    )
    assert ended.returncode == SITE_GONE, ended.stderr
    assert b"agent_files_gone" in ended.stderr


@pytest.mark.parametrize("behaviour", ["fail_in_a_callback", "fail_and_stay"])
def test_an_agent_in_whose_callback_something_failed_is_started_again(
    start: Start, tmp_path: Path, behaviour: str
) -> None:
    """As after a crash: what ran is noted, and the log has the traceback. One that cannot end is ended."""
    supervisor = start(behaviour)
    _, stderr = supervisor.communicate(timeout=PATIENCE)
    assert supervisor.returncode == 0
    assert len(diary(tmp_path)) == 2
    told = {line["event"]: line for line in map(json.loads, stderr.splitlines())}
    assert "ProtocolError" in told["callback_failed"]["exception"]
    assert ("agent_did_not_end" in told) == (behaviour == "fail_and_stay")
    assert told["agent_died"]["exit_code"] == 1
    assert list(read_crashes(tmp_path / "deaths.json", boot_id())) == ["abc123:7"]


def test_the_record_tells_what_runs(tmp_path: Path) -> None:
    """Slot by slot, also to another process; what ended is not in it."""
    path = tmp_path / "running"
    with RunningRecord(path, 3) as record:
        record.begin(0, ["a:1"])
        record.begin(2, ["a:2", "a:3"])
        assert read_running(path) == ["a:1", "a:2", "a:3"]
        record.end(2)
        record.begin(0, ["b:10"])
        assert read_running(path) == ["b:10"]
        record.begin(1, [f"{'c' * 40}:{number}" for number in range(1000)])
        assert len(read_running(path)) > 100
    assert read_running(tmp_path / "nothing") == []


def test_a_record_without_room_on_the_disk_is_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapping of a file without blocks would end the agent at its first write."""
    path = tmp_path / "running"
    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with RunningRecord(path, 2) as record:
        record.begin(1, ["a:1"])
        record.end(1)
    assert not path.exists()


def no_room(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_deaths_that_cannot_be_written_end_no_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written before is kept, and nothing is left beside it."""
    path = tmp_path / "deaths.json"
    write_crashes(path, "this", {"a:1": CrashCount(1, 2, 3.0)})
    record = CrashRecord(path, "this")
    monkeypatch.setattr(Path, "write_text", no_room)
    record.forget("a:1")
    assert record.known == {}
    assert list(read_crashes(path, "this")) == ["a:1"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_supervisor_whose_log_cannot_be_written_goes_on(tmp_path: Path) -> None:
    """Its agent crashes, and the log is on a full disk, as the record of what ran is."""
    (tmp_path / "deaths.json.part").mkdir()
    command = [sys.executable, "-m", "tests.support.agent_process", str(tmp_path), "die_at_work"]
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=full, timeout=PATIENCE, check=False)
    assert ended.returncode == 0
    assert len(diary(tmp_path)) == 3


def test_deaths_of_another_boot_are_forgotten(tmp_path: Path) -> None:
    """So is a file that cannot be read."""
    path = tmp_path / "deaths.json"
    write_crashes(path, "this", {"a:1": CrashCount(1, 2, 3.0)})
    assert read_crashes(path, "this") == {"a:1": CrashCount(1, 2, 3.0)}
    assert read_crashes(path, "other") == {}
    path.write_text("{nonsense")
    assert read_crashes(path, "this") == {}


def test_the_memory_of_deaths_is_bounded() -> None:
    """The oldest go first."""
    known = {f"a:{number}": CrashCount(1) for number in range(MOST)}
    deaths = after_crash(known, ["b:1"], 5.0)
    assert len(deaths) == MOST
    assert "a:0" not in deaths
    assert deaths["b:1"] == CrashCount(1, 0, 5.0)


LIGHT = (
    "from node_agent.__main__ import main",
    "from batchflow.local.batch.nodes.reaper import main",
    "from batchflow.support import linux",
)


@pytest.mark.parametrize("statement", LIGHT)
def test_who_only_watches_holds_little(statement: str) -> None:
    """There is one for each node, for as long as it lives: the interpreter is the larger part of it."""
    report = "import sys; print(*sys.modules)"
    finished = subprocess.run(
        [sys.executable, "-S", "-c", f"{statement}; {report}"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    heavy = {"argparse", "asyncio", "dataclasses", "logging", "pathlib", "socket", "subprocess", "typing"}
    assert heavy & set(finished.stdout.split()) == set()


def test_its_log_is_as_the_agents(start: Start, tmp_path: Path) -> None:
    """Lines of JSON with the same fields, though not by the same code."""
    process = start("crash_once")
    _, said = process.communicate(timeout=PATIENCE)
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line["event"] for line in lines][:2] == ["agent_started", "agent_died"]
    record = logging.makeLogRecord({"msg": "agent_died", "levelname": "ERROR"})
    as_the_agent = json.loads(JsonLines().format(record))
    assert as_the_agent.keys() <= lines[1].keys()
    assert len(lines[1]["at"]) == len(as_the_agent["at"])
    assert lines[1]["level"] == "ERROR"
    assert lines[1]["exit_code"] == 1


def test_its_log_is_as_loud_as_the_agents(start: Start) -> None:
    """By the same variable."""
    process = start("crash_once", BATCHFLOW_LOG_LEVEL="error")
    _, said = process.communicate(timeout=PATIENCE)
    assert [json.loads(line)["event"] for line in said.splitlines()] == ["agent_died"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--config is needed"),
        (("--config", "there.json", "more"), "what is 'more'?"),
        (("--configure", "there.json"), "--configure"),
    ],
)
def test_a_wrong_command_line_is_told(arguments: tuple[str, ...], said: str) -> None:
    """With the usage, and the exit code that programs have for it."""
    command = [sys.executable, "-m", "node_agent", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert said in finished.stderr
    assert finished.stderr.startswith("usage: node_agent --config")
