"""Jars, executables and `java_runner`, with real programs."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from batchflow.model import Status
from node_agent.execution.outcomes import Outcome
from node_agent.execution.startable import obstacle
from node_agent.system import process_groups
from tests.support.slot_bench import bench, keep, materialise, value
from tests.support.waiting import BOUND, eventually

FINE = "def do_action(engine, args): return 'fine'"


async def test_the_value_of_a_program_is_its_lines(tmp_path: Path) -> None:
    """By its executable bit or by "#!"; arguments as text, other values as JSON; stdout and stderr apart."""
    script = '#!/bin/sh\nfor word in "$@"; do echo "[$word]"; done\necho aside >&2\npwd\ncat data.txt\n'
    bundle = {"run.sh": script, "tool*": script, "data.txt": "no newline"}
    async with bench(tmp_path) as slot:
        for name in ("run.sh", "tool"):
            outcome = await slot.run(bundle, name, "a b", 1, None, {"c": [True]}, "-x", "ü")
            *lines, place, data = value(outcome)
            assert lines == ["[a b]", "[1]", "[null]", '[{"c":[true]}]', "[-x]", "[ü]"]
            assert place.startswith(str(tmp_path / "slots/slot-0/"))
            assert data == "no newline"
            assert outcome.stdout.startswith("[a b]\n")
            assert (outcome.stderr, outcome.exit_code) == ("aside\n", 0)


@pytest.mark.parametrize(
    ("script", "kind", "exit_code", "error"),
    [
        ("echo sorry >&2; exit 3", "TaskFailed", 3, "run.sh ended with exit code 3: sorry"),
        ("kill -SEGV $$", "WorkerDied", -11, "run.sh was ended by SIGSEGV"),
        ("kill -9 $$", "WorkerDied", -9, "run.sh was ended by SIGKILL"),
    ],
)
async def test_programs_that_fail_say_how(
    tmp_path: Path, script: str, kind: str, exit_code: int, error: str
) -> None:
    """Exit code and stderr, or the signal's name."""
    async with bench(tmp_path) as slot:
        outcome = await slot.run({"run.sh": f"#!/bin/sh\n{script}\n"}, "run.sh")
    assert (outcome.status, outcome.kind, outcome.exit_code) == (Status.FAILED, kind, exit_code)
    assert (outcome.error or "").startswith(error)


@pytest.mark.parametrize(
    ("bundle", "args", "kind", "error"),
    [
        ({"data": "x"}, [], "TaskRejected", "'data' cannot be run: it is neither .py nor .jar, not execut"),
        ({"data*": "\0\1\2"}, [], "TaskRejected", "data cannot be started: it is neither a program for"),
        ({"data*": "#!/bin/sh"}, ["a\0b"], "TaskRejected", "data: an argument holds NUL"),
        (
            {"data*": "#!/bin/sh"},
            ["x" * 200_000],
            "TaskRejected",
            "data does not start: the argument 'xxxxxxxxxxx",
        ),
        ({"data*": "#!/bin/sh"}, ["y" * 100] * 30_000, "TaskRejected", "data does not start: its 30000 argu"),
    ],
)
async def test_a_file_that_is_no_program_is_rejected(
    tmp_path: Path, bundle: dict[str, str], args: list[Any], kind: str, error: str
) -> None:
    """Refused, or failed as the system has it."""
    async with bench(tmp_path) as slot:
        outcome = await slot.run(bundle, "data", *args)
    assert outcome.kind == kind
    assert (outcome.error or "").startswith(error), outcome


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("#!/bin/sh\r\necho\r\n", "its first line ends with a carriage return"),
        ("#!/bin/sh -e\r\necho\r\n", "its first line ends with a carriage return"),
        (
            "#!/no/such/interpreter -x\n",
            "its first line wants '/no/such/interpreter', which this node does not",
        ),
        ("#!/tmp\n", "its first line wants '/tmp', which this node does not have"),
        ("#! /usr/bin/env no-such-program\n", "its first line wants 'no-such-program', which is not on this"),
        ("#!/usr/bin/env -S A=1 no-such-program -u\n", "its first line wants 'no-such-program'"),
        ("#!/usr/bin/env sh -e\n", "Linux hands 'sh -e' to env as one word: write '#!/usr/bin/env -S sh -e'"),
        ("\ufeff#!/bin/sh\n", "a byte order mark is before its '#!'"),
        ("MZ\x90\0", "it is a program for Windows"),
        ("\x7fELF" + "\0" * 14 + "\x16\0", None),
        ("\x7fELF" + "\0" * 14 + "\x28\0", "it is built for armv7l, and this node is "),
        ("#!/bin/sh\n", None),
        ("#!/usr/bin/env sh\n", None),
        ("#!/usr/bin/env -S sh -e\n", None),
        ("#!\n", None),
        ("", None),
    ],
)
def test_what_keeps_a_file_from_being_started_is_named(
    tmp_path: Path, content: str, reason: str | None
) -> None:
    """A script's first line, and the machine that a program is built for."""
    (tmp_path / "run").write_bytes(content.encode())
    found = obstacle(tmp_path / "run", tmp_path)
    assert found is reason if reason is None else (found and found.reason.startswith(reason)), found


async def test_a_program_that_cannot_start_names_the_reason_and_the_remedy(tmp_path: Path) -> None:
    """Not the kernel's answer, which is that the file is not there."""
    async with bench(tmp_path) as slot:
        rejected = await slot.run({"run.sh": "#!/bin/sh\r\necho hi\r\n"}, "run.sh")
        missing = await slot.run({"run.sh": "#!/no/such/interpreter\n"}, "run.sh")
    assert (rejected.kind, missing.kind) == ("TaskRejected", "TaskFailed")
    assert "convert the file to Unix line endings" in (rejected.error or "")
    assert "install it on the nodes: PoolSpec(apt=[...])" in (missing.error or "")


async def test_a_program_that_prints_without_end_does_not_fill_memory(tmp_path: Path) -> None:
    """The tail is kept, the lines are refused as a value with their size."""
    script = "#!/bin/sh\nhead -c 50000000 /dev/zero | tr '\\0' x\necho\necho last\n"
    async with bench(tmp_path, output_limit=100) as slot:
        outcome = await slot.run({"run.sh": script}, "run.sh")
        assert outcome.kind == "ResultTooLarge"
        assert "printed 50000006 bytes, the limit is 16777216" in (outcome.error or "")
        assert outcome.stdout.endswith("\nlast\n")
    async with bench(tmp_path, result_limit=10) as slot:
        outcome = await slot.run({"run.sh": "#!/bin/sh\necho more than ten\n"}, "run.sh")
        assert outcome.kind == "ResultTooLarge"


async def test_lines_of_a_program_are_told_live(tmp_path: Path) -> None:
    """Both streams, while it runs."""
    script = "#!/bin/sh\necho one\necho two >&2\nwhile [ ! -e outputs/go ]; do sleep 0.01; done\necho three\n"
    async with bench(tmp_path) as slot:
        bundle, files = materialise(tmp_path, {"run.sh": script})
        running = asyncio.create_task(
            slot.execute(slot.execution(bundle, "run.sh", [], stream_output=True), files)
        )
        await eventually(lambda: slot.messages("stdout") and slot.messages("stderr"))
        assert (slot.messages("stdout"), slot.messages("stderr")) == (["one"], ["two"])
        (tmp_path / f"slots/slot-0/{bundle.hash[:20]}/outputs/go").touch()
        outcome = await running
        assert value(outcome) == ["one", "three"]
        assert slot.messages("stdout") == ["one", "three"]
        assert outcome.output_names() == ("go",)


async def test_a_program_at_its_limits_is_ended_with_all_it_started(tmp_path: Path) -> None:
    """Time (TERM first) and memory."""
    script = """#!/bin/sh
trap 'echo told; exit 0' TERM
(setsid sleep 300 &)
sleep 300 &
wait
"""
    hungry = "#!/usr/bin/env python3\nx = []\nwhile True: x.append(b'x' * 2**20)\n"
    async with bench(tmp_path) as slot:
        outcome = await slot.run({"run.sh": script}, "run.sh", timeout=0.3)
        assert (outcome.kind, outcome.stdout) == ("TaskTimeout", "told\n")
        outcome = await slot.run({"hungry": hungry}, "hungry", memory_limit=100 * 2**20)
        assert outcome.kind == "TaskOutOfMemory"
        assert not _sleepers(slot.root)
        assert value(await slot.python(FINE)) == "fine"


def _sleepers(root: Path) -> list[int]:
    """Processes whose current directory is in the slot's folder, besides the child."""
    found = []
    for pid in process_groups.table():
        try:
            place = os.readlink(f"/proc/{pid}/cwd")
        except OSError:
            continue
        if place.startswith(str(root)) and Path(f"/proc/{pid}/comm").read_text().strip() == "sleep":
            found.append(pid)
    return found


async def test_what_a_program_leaves_behind_is_killed(tmp_path: Path) -> None:
    """A daemon does not outlive the task that started it, though the program ended well."""
    script = "#!/bin/sh\nsleep 300 &\nsetsid sleep 300 >/dev/null 2>&1 &\necho done\n"
    async with bench(tmp_path) as slot:
        assert value(await slot.run({"run.sh": script}, "run.sh")) == ["done"]
        assert not _sleepers(slot.root)


async def test_a_cancelled_program_is_gone_before_run_raises(tmp_path: Path) -> None:
    """Also one that does not listen to SIGTERM."""
    script = "#!/bin/sh\ntrap '' TERM\necho runs\nwhile :; do sleep 300; done\n"
    async with bench(tmp_path) as slot:
        bundle, files = materialise(tmp_path, {"run.sh": script})
        running = asyncio.create_task(
            slot.execute(slot.execution(bundle, "run.sh", [], stream_output=True), files)
        )
        await eventually(lambda: slot.messages("stdout"))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not _sleepers(slot.root)
        assert value(await slot.python(FINE)) == "fine"


# Java: a stand-in for what does not need a virtual machine

RUNNER = "def do_action(engine, args): return engine.java_runner(args), 'no error'"


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `java` that prints what it was called with, and does as its last argument says."""
    folder = tmp_path / "jdk/bin"
    folder.mkdir(parents=True)
    (folder / "java").write_text('#!/bin/sh\necho "$@"\necho warn >&2\neval "last=\\${$#}"\neval "$last"\n')
    (folder / "java").chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(folder.parent))
    return folder.parent


@pytest.mark.usefixtures("stand_in")
async def test_java_runner_takes_both_forms_and_returns_the_lines(tmp_path: Path) -> None:
    """As a command line in one list, and as a jar and its arguments; stdout first."""
    async with bench(tmp_path) as slot:
        outcome = await slot.python(RUNNER, "java", "-Xmx64m", "-jar", "pi.jar", "true")
        assert value(outcome) == ["-Xmx64m -jar pi.jar true", "warn"]
        outcome = await slot.python("def do_action(e, a): return e.java_runner('pi.jar', 'true')")
        assert value(outcome) == ["-jar pi.jar true", "warn"]
        outcome = await slot.python("def do_action(e, a): return e.java_runner('x.jar', 'pwd')")
        assert value(outcome)[1].startswith(str(tmp_path / "slots/slot-0/"))


@pytest.mark.usefixtures("stand_in")
async def test_java_that_fails_fails_the_task_unless_it_is_caught(tmp_path: Path) -> None:
    """Exit code and stderr are told; `check=False` gives the lines."""
    async with bench(tmp_path) as slot:
        outcome = await slot.python(RUNNER, "pi.jar", "exit 3")
        assert (outcome.kind, outcome.exception) == ("TaskFailed", "JavaError")
        assert outcome.error == "JavaError: java -jar pi.jar exit 3 ended with exit code 3: warn"
        outcome = await slot.python(
            "def do_action(e, a): return e.java_runner('p.jar', 'exit 3', check=False)"
        )
        assert value(outcome) == ["-jar p.jar exit 3", "warn"]
        outcome = await slot.python(RUNNER, "pi.jar", "kill -9 $$")
        assert "was killed by signal 9" in (outcome.error or "")
        outcome = await slot.python(RUNNER, "ruby", "x.rb")
        assert (outcome.kind, outcome.exception) == ("TaskFailed", "ValueError")


@pytest.mark.usefixtures("stand_in")
async def test_java_that_prints_too_much_is_told(tmp_path: Path) -> None:
    """Neither agent nor child holds it all."""
    async with bench(tmp_path) as slot:
        outcome = await slot.python(RUNNER, "pi.jar", "head -c 30000000 /dev/zero")
        assert "printed 300000" in (outcome.error or "")
        assert "the limit is 16777216" in (outcome.error or "")


@pytest.mark.usefixtures("stand_in")
async def test_several_at_once_from_an_async_action_and_from_threads(tmp_path: Path) -> None:
    """Each gets its own lines back, and they run side by side."""
    gathered = """
import asyncio
async def do_action(engine, args):
    meet = 'touch outputs/%d; while [ ! -e outputs/0 ] || [ ! -e outputs/1 ]; do sleep 0.01; done; echo %d'
    return await asyncio.gather(*(engine.run_java('x.jar', meet % (n, n)) for n in range(2)))
"""
    threads = """
from concurrent.futures import ThreadPoolExecutor
def do_action(engine, args):
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda n: engine.java_runner('x.jar', f'echo {n}')[1], range(24)))
"""
    async with bench(tmp_path) as slot:
        found = value(await slot.python(gathered, timeout=BOUND))
        assert [lines[1] for lines in found] == ["0", "1"]
        assert value(await slot.python(threads, timeout=BOUND)) == [str(n) for n in range(24)]


@pytest.mark.usefixtures("stand_in")
async def test_java_of_one_task_of_a_pack_concerns_no_other(tmp_path: Path) -> None:
    """Although the agent may read the wish for it in one piece with the answers before it."""
    source = """
async def do_action(engine, args):
    if args[0]:
        return (await engine.run_java('x.jar', args[0]))[1]
"""
    async with bench(tmp_path) as slot:
        bundle, files = materialise(tmp_path, {"task.py": source})
        await slot.execute(slot.execution(bundle, "task.py", [""]), files)  # has imported asyncio
        gate = tmp_path / "gate"
        arguments = ["", "", "", f"while [ ! -e {gate} ]; do sleep 0.01; done; echo through", ""]
        tasks = [slot.execution(bundle, "task.py", [word]) for word in arguments]
        found: dict[int, Outcome] = {}
        running = asyncio.create_task(slot.run_many(tasks, files, keep(found)))
        await eventually(lambda: len(found) == 3)
        gate.touch()
        await running
    assert [value(outcome) for outcome in found.values()] == [None, None, None, "through", None]


@pytest.mark.usefixtures("stand_in")
async def test_java_that_a_task_of_a_pack_forgot_ends_before_the_next_task(tmp_path: Path) -> None:
    """And what the next one runs is not taken for it."""
    source = """
import asyncio
async def do_action(engine, args):
    if args[0]:
        return engine.java_runner('x.jar', args[0])[1]
    asyncio.create_task(engine.run_java('x.jar', 'sleep 300'))
    await asyncio.sleep(0.01)
"""
    async with bench(tmp_path) as slot:
        bundle, files = materialise(tmp_path, {"task.py": source})
        tasks = [slot.execution(bundle, "task.py", [word]) for word in ("", "sleep 0.3; echo through")] * 3
        found: dict[int, Outcome] = {}
        await slot.run_many(tasks, files, keep(found))
        assert not _sleepers(slot.root)
    assert [value(found[index]) for index in range(6)] == [None, "through"] * 3


@pytest.mark.usefixtures("stand_in")
async def test_java_that_hangs_ends_with_its_task(tmp_path: Path) -> None:
    """At the limit, at a cancellation, and when a thread left it behind."""
    late = """
import threading
def do_action(engine, args):
    started = threading.Thread(target=lambda: engine.java_runner('x.jar', 'touch outputs/runs; sleep 300'))
    started.daemon = True
    started.start()
    while not (engine.outputs / 'runs').exists(): pass
"""
    async with bench(tmp_path) as slot:
        outcome = await slot.python(RUNNER, "x.jar", "sleep 300", timeout=0.3)
        assert outcome.kind == "TaskTimeout"
        assert not _sleepers(slot.root)
        await slot.slot.ready()
        child = slot.slot.child_pid
        assert value(await slot.python(late)) is None
        assert not _sleepers(slot.root)
        assert slot.slot.child_pid == child
        assert value(await slot.python(FINE)) == "fine"


async def test_no_java_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From `java_runner` and for a jar as the command."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    async with bench(tmp_path) as slot:
        outcome = await slot.python(RUNNER, "pi.jar")
        assert (outcome.kind, outcome.exception) == ("TaskFailed", "JavaError")
        assert "no Java on this node" in (outcome.error or "")
        outcome = await slot.run({"pi.jar": "x"}, "pi.jar")
        assert outcome.kind == "TaskFailed"
        assert "no Java on this node" in (outcome.error or "")


# Java itself

JAVA = """
public class Echo {
    public static void main(String[] args) throws Exception {
        System.out.println(String.join(" ", args));
        System.err.println("aside");
        System.exit(args.length == 0 ? 5 : 0);
    }
}
"""


@pytest.fixture(scope="module")
def jar(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A jar that echoes its arguments, and ends with 5 without any."""
    if shutil.which("javac") is None or shutil.which("jar") is None:
        pytest.skip("there is no javac to make a jar with")
    folder = tmp_path_factory.mktemp("java")
    (folder / "Echo.java").write_text(JAVA)
    subprocess.run(["javac", "-J-Xshare:auto", "Echo.java"], cwd=folder, check=True)
    subprocess.run(["jar", "cfe", "echo.jar", "Echo", "Echo.class"], cwd=folder, check=True)
    return (folder / "echo.jar").read_bytes()


async def test_real_java_runs_by_every_way(tmp_path: Path, jar: bytes) -> None:
    """As the command, by java_runner in both forms, and failing."""
    bundle: dict[str, str | bytes] = {"echo.jar": jar, "runner.py": RUNNER}
    async with bench(tmp_path) as slot:
        outcome = await slot.run(bundle, "echo.jar", "a", 1)
        assert (value(outcome), outcome.stderr) == (["a 1"], "aside\n")
        outcome = await slot.run(bundle, "runner.py", "java", "-Xmx64m", "-jar", "echo.jar", "b")
        assert value(outcome) == ["b", "aside"]
        outcome = await slot.run(bundle, "runner.py", "echo.jar", "c")
        assert value(outcome) == ["c", "aside"]
        outcome = await slot.run(bundle, "echo.jar")
        assert (outcome.kind, outcome.exit_code) == ("TaskFailed", 5)
        assert outcome.error == "echo.jar ended with exit code 5: aside"
