"""Python tasks in a slot: the contract of `do_action`, modules, output, packs; with real child processes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from batchflow.model import Status
from node_agent.bundles.stored_file import StoredFile
from node_agent.execution.outcomes import Outcome
from tests.support.processes import is_alive
from tests.support.slot_bench import bench, keep, materialise, value
from tests.support.waiting import eventually


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return args, 'no error'", [1, "a b", {"c": None}]),
        ("return args[0], ''", 1),
        ("return args[1], None", "a b"),
        ("return [1, 2]", [1, 2]),
        ("return (1, 2)", (1, 2)),
        ("return (1, 2, None)", (1, 2, None)),
        ("return [1, 'boom']", [1, "boom"]),
        ("pass", None),
        ("return None, None", None),
    ],
)
async def test_results_are_told_from_result_and_error(tmp_path: Path, body: str, expected: Any) -> None:
    """A tuple of two that ends in a text or None is (result, error), anything else the result."""
    async with bench(tmp_path) as slot:
        outcome = await slot.python(f"def do_action(engine, args):\n    {body}", 1, "a b", {"c": None})
        assert value(outcome) == expected
        assert outcome.status is Status.SUCCEEDED
        assert outcome.kind is None


async def test_an_error_fails_the_task_and_keeps_the_result(tmp_path: Path) -> None:
    """The text is the task's own."""
    async with bench(tmp_path) as slot:
        outcome = await slot.python("def do_action(engine, args):\n    return [1], 'no such row'")
    assert (outcome.status, outcome.kind, outcome.error) == (Status.FAILED, "TaskFailed", "no such row")
    assert outcome.value == b"[1]"


ASYNC = """
import asyncio
state = []
async def do_action(engine, args):
    state.append(asyncio.get_running_loop())
    stray = asyncio.create_task(asyncio.sleep(300))
    await asyncio.sleep(0)
    return len(set(state)), None
"""


async def test_async_actions_share_one_loop_and_leave_nothing_running(tmp_path: Path) -> None:
    """The loop is the child's; what was not awaited is cancelled."""
    async with bench(tmp_path) as slot:
        assert [value(await slot.python(ASYNC)) for _ in range(2)] == [1, 1]


async def test_exceptions_come_with_the_users_own_frames(tmp_path: Path) -> None:
    """File names as in the bundle, no frame of ours, causes included."""
    files = {
        "task.py": "import helper\nasync def do_action(engine, args):\n    helper.work()",
        "helper.py": "def work():\n    try:\n        {}['x']\n    except KeyError as e:\n"
        "        raise ValueError('bad row') from e",
    }
    async with bench(tmp_path) as slot:
        outcome = await slot.run(files, "task.py")
    assert (outcome.kind, outcome.error, outcome.exception) == (
        "TaskFailed",
        "ValueError: bad row",
        "ValueError",
    )
    assert outcome.traceback is not None
    assert 'File "task.py", line 3, in do_action' in outcome.traceback
    assert "KeyError: 'x'" in outcome.traceback
    assert "node_agent" not in outcome.traceback
    assert "asyncio" not in outcome.traceback


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("raise Retry(2.5, 'later')", ("retry", 2.5, "Retry: later")),
        ("raise Permanent('never')", ("permanent", 0.0, "Permanent: never")),
    ],
)
async def test_retry_and_permanent_are_wishes(tmp_path: Path, body: str, expected: Any) -> None:
    """They travel beside the failure."""
    async with bench(tmp_path) as slot:
        outcome = await slot.python(
            f"from batchflow.errors import Permanent, Retry\ndef do_action(engine, args):\n    {body}"
        )
    assert (outcome.request, outcome.delay, outcome.error) == expected
    assert outcome.kind == "TaskFailed"


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import no_such_module", "task.py does not import: ModuleNotFoundError: No module named 'no_such_m"),
        ("def do_action(:", "task.py does not import: SyntaxError"),
        ("raise SystemExit(3)", "task.py does not import: SystemExit: 3"),
        (
            "def run(): pass\ndef main(): pass",
            r"task.py has no do_action(engine, args); it defines main, run",
        ),
        ("x = 1", "task.py has no do_action(engine, args)"),
        ("do_action = 3", "do_action in task.py is int, not a function (engine, args)"),
    ],
)
async def test_what_cannot_be_called_says_so(tmp_path: Path, source: str, error: str) -> None:
    """An import that fails and a missing `do_action` are told apart, and told exactly."""
    async with bench(tmp_path) as slot:
        outcome = await slot.python(source)
        assert outcome.kind == "TaskImportError"
        assert outcome.error is not None
        assert outcome.error.startswith(error)
        assert value(await slot.python("def do_action(engine, args): return 1")) == 1


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        (("sub/task.py", "sub/helper.py"), "write `from sub import helper`"),
        (("sub/task.py", "sub/helper/core.py"), "sub/helper/ is in the bundle, but imports begin at its top"),
        (("my-tasks/task.py", "my-tasks/helper.py"), "have the files of my-tasks/ at the top (files="),
        (
            ("task.py",),
            "the bundle has no helper.py, and the node no package helper: add the file (files=, --file)",
        ),
    ],
)
@pytest.mark.parametrize("lazy", [False, True])
async def test_a_module_that_is_not_found_comes_with_the_remedy(
    tmp_path: Path, files: tuple[str, ...], remedy: str, lazy: bool
) -> None:
    """A sibling in a subfolder, a helper that was left out; imported at the top or by the action."""
    source = "def do_action(engine, args):\n    import helper" if lazy else "import helper"
    async with bench(tmp_path) as slot:
        outcome = await slot.run(
            {name: source if name.endswith("task.py") else "" for name in files}, files[0]
        )
    assert outcome.kind == ("TaskFailed" if lazy else "TaskImportError")
    assert "No module named 'helper'; " in (outcome.error or "")
    assert remedy in (outcome.error or "")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("tusk.py", "'tusk.py' is not in the bundle; did you mean 'task.py'? (it holds task.py)"),
        ("x", "'x' is not in the bundle (it holds task.py)"),
        ("../task.py", "a path that does not stay in its folder"),
        ("/bin/sh", "a path that does not stay in its folder"),
        ("./task.py", "write 'task.py'"),
        ("tasks/task.py", "did you mean 'task.py'?"),
        ("/home/me/task.py", "did you mean 'task.py'?"),
        ("a/../task.py", "a path that does not stay in its folder"),
        ("task.py\0", "control character"),
        ("-c", "begins like an option"),
        ("", "1 to 512 characters"),
        ("task.py; rm -rf x", "is not in the bundle"),
    ],
)
async def test_commands_that_are_no_file_of_the_bundle_are_rejected(
    tmp_path: Path, command: str, error: str
) -> None:
    """Nothing is executed."""
    async with bench(tmp_path) as slot:
        outcome = await slot.run({"task.py": "open('/dev/null')"}, command)
    assert outcome.kind == "TaskRejected"
    assert outcome.error is not None
    assert error in outcome.error


@pytest.mark.parametrize("limits", [{"timeout": 0.0}, {"timeout": float("nan")}, {"memory_limit": -1}])
async def test_limits_that_are_none_are_rejected(tmp_path: Path, limits: Any) -> None:
    """The name of the limit is told."""
    async with bench(tmp_path) as slot:
        outcome = await slot.python("def do_action(engine, args): pass", **limits)
    assert outcome.kind == "TaskRejected"
    assert next(iter(limits)) in (outcome.error or "")


async def test_results_that_cannot_travel_and_results_too_large_are_told(tmp_path: Path) -> None:
    """The place and the type; the size and the limit."""
    async with bench(tmp_path, result_limit=1000) as slot:
        source = "def do_action(engine, args): return {'rows': [1, print]} if args else 'x' * 2000"
        one = await slot.python(source, 1)
        two = await slot.python(source)
    assert one.kind == "ResultNotSerializable"
    assert 'result["rows"][1] is of type builtin_function_or_method' in (one.error or "")
    assert two.kind == "ResultTooLarge"
    assert "2002 bytes of JSON, the limit is 1000" in (two.error or "")


async def test_arguments_and_results_of_many_megabytes_pass(tmp_path: Path) -> None:
    """Far above what a socket holds, both ways."""
    async with bench(tmp_path) as slot:
        sent = "x" * 8_000_000
        assert value(await slot.python("def do_action(engine, args): return args[0]", sent)) == sent


# modules

COUNTING = "calls = []\ndef do_action(engine, args):\n    calls.append(1)\n    return len(calls), __name__"


async def test_modules_stay_imported_as_long_as_the_bundle_stays(tmp_path: Path) -> None:
    """One import for many tasks, by the name that a plain import has."""
    source = COUNTING.replace("return len(calls), __name__", "return [len(calls), __name__]")
    async with bench(tmp_path) as slot:
        assert [value(await slot.python(source)) for _ in range(3)] == [[n, "task"] for n in (1, 2, 3)]


def version(number: str) -> dict[str, str]:
    return {
        "task.py": "import helper\nfrom lib.deep import part\ndef do_action(engine, args):\n"
        "    import late\n    return [helper.N, part.N, late.N, open('data.txt').read()]",
        "helper.py": f"N = {number}",
        "lib/deep/part.py": f"N = {number}",
        "late.py": f"N = {number}",
        "data.txt": number,
    }


async def test_a_changed_bundle_never_meets_an_old_module(tmp_path: Path) -> None:
    """Siblings, packages, late imports and data change together, also when bundles take turns."""
    async with bench(tmp_path) as slot:
        pid = None
        for number in "1212":
            assert value(await slot.run(version(number), "task.py")) == [int(number)] * 3 + [number]
            assert pid in (None, slot.slot.child_pid)
            pid = slot.slot.child_pid


NAMES = {
    "json.py": "def do_action(engine, args):\n    import json\n    return hasattr(json, 'dumps')",
    "1_task.py": "def do_action(engine, args): return 'digits'",
    "deep/er/my-task.py": "def do_action(engine, args): return 'dashes'",
    "deep/task.py": "from deep import other\ndef do_action(engine, args): return other.X",
    "deep/other.py": "X = 'package'",
    "traceback.py": "def do_action(engine, args): raise ValueError('shown')",
    "asyncio.py": "X = 1\nasync def do_action(engine, args): return 'own asyncio'",
    "orjson.py": "def do_action(engine, args): return 'third party'",
}


async def test_any_file_name_will_do_and_takes_nothing_from_anybody(tmp_path: Path) -> None:
    """Names of the standard library, names that are no identifiers, names in folders."""
    async with bench(tmp_path) as slot:
        found = {name: await slot.run(NAMES, name) for name in NAMES if name != "deep/other.py"}
    assert found.pop("traceback.py").traceback is not None
    assert value(found.pop("json.py")) is True
    assert {name: value(outcome) for name, outcome in found.items()} == {
        "1_task.py": "digits",
        "deep/er/my-task.py": "dashes",
        "deep/task.py": "package",
        "asyncio.py": "own asyncio",
        "orjson.py": "third party",
    }


async def test_a_file_that_did_not_import_is_tried_again(tmp_path: Path) -> None:
    """A failed import leaves nothing half done."""
    source = (
        "import sys\nif not hasattr(sys, 'tried'):\n    sys.tried = True\n    raise OSError('no')\n"
        "def do_action(engine, args): return 1"
    )
    async with bench(tmp_path) as slot:
        assert (await slot.python(source)).kind == "TaskImportError"
        assert value(await slot.python(source)) == 1


# what tasks share


async def test_a_task_gets_back_what_the_process_has_one_of(tmp_path: Path) -> None:
    """Current directory, sys.path, stdout, the signal handler."""
    harm = """
import os, sys, io, signal
def do_action(engine, args):
    if args:
        os.chdir('/'); sys.path.clear(); sys.stdout = io.StringIO()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return None
    print('seen')
    handled = signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
    return [os.getcwd() == str(engine.working_dir), len(sys.path) > 1, handled]
"""
    async with bench(tmp_path) as slot:
        await slot.python(harm, 1)
        outcome = await slot.python(harm)
    assert value(outcome) == [True, True, True]
    assert outcome.stdout == "seen\n"


async def test_the_working_directory_is_clean_for_each_task(tmp_path: Path) -> None:
    """What one leaves the next does not see; what one overwrites is put back."""
    source = """
import os
def do_action(engine, args):
    seen = sorted(os.listdir())
    open('left', 'w').close()
    os.chmod('data.txt', 0o644)
    was = open('data.txt').read()
    open('data.txt', 'w').write('changed')
    return [seen, was]
"""
    async with bench(tmp_path) as slot:
        for _ in range(2):
            outcome = await slot.run({"task.py": source, "data.txt": "right"}, "task.py")
            assert value(outcome) == [["data.txt", "outputs", "task.py"], "right"]


async def test_outputs_are_listed_and_kept_until_cleaned(tmp_path: Path) -> None:
    """Files in outputs/, and uploaded ones; a task after it does not touch them."""
    source = """
def do_action(engine, args):
    (engine.outputs / 'deep').mkdir()
    (engine.outputs / 'deep' / 'a.txt').write_text('a')
    open('b.txt', 'w').write('b')
    return engine.upload('b.txt')
"""
    async with bench(tmp_path) as slot:
        outcome = await slot.python(source)
        assert value(outcome) == "b.txt"
        assert outcome.output_names() == ("b.txt", "deep/a.txt")
        again = await slot.python(source)
        assert [path.read_text() for path in outcome.outputs] == ["b", "a"]
        slot.slot.clean(outcome)
        assert [path.exists() for path in outcome.outputs + again.outputs] == [False, False, True, True]
        slot.slot.clean()
        assert not again.outputs[0].exists()


# output


async def test_output_is_captured_from_python_and_from_below(tmp_path: Path) -> None:
    """print, fd 1, a subprocess; fd 0 is empty; each task has its own."""
    source = """
import os, subprocess, sys
def do_action(engine, args):
    print('printed'); sys.stdout.flush()
    os.write(1, b'raw\\n')
    subprocess.run(['sh', '-c', 'echo below; echo wrong >&2'])
    return sys.stdin.read()
"""
    async with bench(tmp_path) as slot:
        for _ in range(2):
            outcome = await slot.python(source)
            assert value(outcome) == ""
            assert (outcome.stdout, outcome.stderr) == ("printed\nraw\nbelow\n", "wrong\n")


async def test_live_lines_logs_and_progress_are_events(tmp_path: Path) -> None:
    """While the task runs, in order; without stream_output the engine's own only."""
    source = """
import os, time
def do_action(engine, args):
    print('one'); print('two', end='')
    engine.log('note'); engine.progress(1, 2)
    while args and not os.path.exists(args[0]): time.sleep(0.01)
"""
    async with bench(tmp_path) as slot:
        bundle, files = materialise(tmp_path, {"task.py": source})
        seen = tmp_path / "seen"
        execution = slot.execution(bundle, "task.py", [str(seen)], stream_output=True)
        running = asyncio.create_task(slot.execute(execution, files))
        await eventually(lambda: slot.messages("stdout") == ["one"] and slot.messages("progress") == ["1/2"])
        assert slot.messages("log") == ["note"]
        seen.touch()
        outcome = await running
        assert slot.messages("stdout") == ["one", "two"]
        assert outcome.stdout == "one\ntwo"
        assert {event.task_id for event in slot.events} == {"1"}
        slot.events.clear()
        await slot.python(source)
        assert slot.messages("stdout") == []
        assert slot.messages("log") == ["note"]


async def test_floods_of_events_are_bounded_and_counted(tmp_path: Path) -> None:
    """What is above the rate is left out, and said."""
    source = "def do_action(engine, args):\n    for i in range(5000): engine.log(i)"
    async with bench(tmp_path) as slot:
        await slot.python(source)
        (warning,) = [event for event in slot.events if event.kind == "warning"]
        assert len(slot.messages("log")) + warning.data["dropped"] == 5000
        assert warning.data["dropped"] > 3000


# packs


async def test_a_pack_runs_in_order_and_mixes_nothing_up(tmp_path: Path) -> None:
    """Output, files, failures and a death in the middle stay with their own task."""
    source = """
import os
def do_action(engine, args):
    n, what = args
    if what == 'print': print(f'out {n}')
    if what == 'file': open('outputs/f', 'w').write(str(n))
    if what == 'die': os._exit(7)
    if what == 'exit': raise SystemExit(6)
    if what == 'raise': raise ValueError(n)
    return [n, os.listdir('outputs')]
"""
    what = ["", "print", "file", "", "die", "raise", "print", "exit", "file", ""]
    async with bench(tmp_path) as slot:
        bundle, files = materialise(tmp_path, {"task.py": source})
        tasks = [slot.execution(bundle, "task.py", [n, act]) for n, act in enumerate(what)]
        tasks.insert(3, slot.execution(bundle, "nothing.py", []))
        found: dict[int, Outcome] = {}
        await slot.run_many(tasks, files, keep(found))
        assert list(found) == list(range(11))
        rejected = found.pop(3)
        assert rejected.kind == "TaskRejected"
        outcomes = list(found.values())
        for number, (act, outcome) in enumerate(zip(what, outcomes, strict=True)):
            assert outcome.stdout == (f"out {number}\n" if act == "print" else "")
            if act in ("die", "exit"):
                code = 7 if act == "die" else 6
                assert (outcome.kind, outcome.exit_code) == ("WorkerDied", code)
            elif act == "raise":
                assert outcome.error == f"ValueError: {number}"
            else:
                assert value(outcome) == [number, ["f"] if act == "file" else []]
            texts = [path.read_text() for path in outcome.outputs]
            assert texts == ([str(number)] if act == "file" else [])


async def test_the_tasks_of_a_pack_have_their_own_times_and_prints(tmp_path: Path) -> None:
    """However late the agent looks at their answers: one after the other, and as long as each has slept."""
    source = """
import time
def do_action(engine, args):
    time.sleep(0.002)
    if args[0] % 3 == 1:
        print(args[0], flush=True)
    time.sleep(0.002)
"""
    async with bench(tmp_path) as slot:
        bundle, files = materialise(tmp_path, {"task.py": source})
        tasks = [slot.execution(bundle, "task.py", [number]) for number in range(30)]
        found: dict[int, Outcome] = {}
        await slot.run_many(tasks, files, keep(found))
    own, last = 0.0, found[0].started_at or 0.0
    began = last
    jump = 0.02  # seconds by which a machine's clock may be set while the tasks run
    for number, outcome in found.items():
        assert outcome.stdout == (f"{number}\n" if number % 3 == 1 else "")
        assert outcome.started_at is not None
        assert outcome.finished_at is not None
        assert last <= outcome.started_at + jump
        own += outcome.finished_at - outcome.started_at
        last = outcome.finished_at
    assert 30 * 0.004 - jump <= own <= last - began + jump


async def test_what_a_task_of_a_pack_tells_is_told_of_that_task(tmp_path: Path) -> None:
    """However much of what the tasks after it say comes in one piece with its answer."""
    source = "def do_action(engine, args):\n    engine.log(str(args[0]))\n    engine.progress(args[0])"
    async with bench(tmp_path) as slot:
        bundle, files = materialise(tmp_path, {"task.py": source})
        tasks = [slot.execution(bundle, "task.py", [number]) for number in range(100)]
        await slot.run_many(tasks, files, lambda *_: None)
        told = [(event.task_id, event.kind) for event in slot.events]
    assert told == [(task.task_id, kind) for task in tasks for kind in ("log", "progress")]


async def test_answers_do_not_wait_for_a_slow_companion(tmp_path: Path) -> None:
    """Those before it are known while it runs, although the child does not wake the agent for them."""
    source = """
import os, time
def do_action(engine, args):
    while args[0] and not os.path.exists(args[0]):
        time.sleep(0.005)
"""
    async with bench(tmp_path) as slot:
        bundle, files = materialise(tmp_path, {"task.py": source})
        go = tmp_path / "go"
        arguments = [[""], [""], [""], [str(go)], [""]]
        tasks = [slot.execution(bundle, "task.py", args) for args in arguments]
        found: dict[int, Outcome] = {}
        running = asyncio.create_task(slot.run_many(tasks, files, keep(found)))
        await eventually(lambda: len(found) == 3)
        go.touch()
        await running
        assert list(found) == [0, 1, 2, 3, 4]


async def test_a_child_that_closes_its_line_in_a_pack_is_replaced(tmp_path: Path) -> None:
    """The agent notices although it does not watch the line; the tasks after it run in another child."""
    source = """
import os, time
def do_action(engine, args):
    if args[0] == 1:
        os.closerange(3, 64)
        time.sleep(60)
    return args[0]
"""
    async with bench(tmp_path) as slot:
        bundle, files = materialise(tmp_path, {"task.py": source})
        tasks = [slot.execution(bundle, "task.py", [number]) for number in range(4)]
        found: dict[int, Outcome] = {}
        await slot.run_many(tasks, files, keep(found))
        assert found[1].kind == "WorkerDied"
        assert [value(found[number]) for number in (0, 2, 3)] == [0, 2, 3]


# the child


async def test_the_next_child_is_warm_before_the_last_one_has_done_its_number_of_tasks(
    tmp_path: Path,
) -> None:
    """The slot does not stand still for it. It takes over, and none is left when the slot closes."""
    source = """
import os, time
def do_action(engine, args):
    number, hang, orphans = args
    children = f'/proc/{os.getppid()}/task/{os.getppid()}/children'
    # the template, this one and the next one, which may be there from the first task on
    while number == 2 and len(set(open(children).read().split()) - set(orphans)) < 3:
        time.sleep(0.005)
    engine.log(open(children).read())
    while hang and number == 2:
        time.sleep(1)
    return os.getpid()
"""
    orphans = set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text("ascii").split())
    async with bench(tmp_path, child_tasks=3) as slot:
        bundle, files = materialise(tmp_path, {"task.py": source})
        tasks = [slot.execution(bundle, "task.py", [number, False, list(orphans)]) for number in range(5)]
        found: dict[int, Outcome] = {}
        await slot.run_many(tasks, files, keep(found))
        pids = [value(outcome) for outcome in found.values()]
        assert pids[0] == pids[1] == pids[2] != pids[3] == pids[4]
        both = set(slot.messages("log")[2].split()) - orphans  # of other tests
        assert str(pids[3]) in both
    assert not any(is_alive(int(pid)) for pid in both)
    async with bench(tmp_path, child_tasks=3) as slot:
        tasks = [slot.execution(bundle, "task.py", [number, True, list(orphans)]) for number in range(3)]
        running = asyncio.create_task(slot.run_many(tasks, files, lambda *_: None))
        await eventually(lambda: len(slot.messages("log")) == 3)
        both = set(slot.messages("log")[2].split()) - orphans
        running.cancel()
        await asyncio.wait([running])
    assert not any(is_alive(int(pid)) for pid in both)


async def test_a_child_is_replaced_after_its_number_of_tasks_and_above_its_memory(tmp_path: Path) -> None:
    """Both by the settings."""
    source = """
import os
kept = []
def do_action(engine, args):
    kept.append(b'x' * (args[0] * 2**20))
    return os.getpid()
"""
    async with bench(tmp_path, child_tasks=3) as slot:
        pids = [value(await slot.python(source, 0)) for _ in range(7)]
        assert len(set(pids)) == 3
        assert [pids.index(pid) for pid in pids] == [0, 0, 0, 3, 3, 3, 6]
    async with bench(tmp_path, child_memory=100 * 2**20) as slot:
        pids = [value(await slot.python(source, size)) for size in (0, 0, 200, 0)]
        assert pids[0] == pids[1] == pids[2] != pids[3]


async def test_a_child_carries_only_what_it_needs(tmp_path: Path) -> None:
    """No event loop, no SDK, nothing of the agent: it starts quickly and stays small."""
    source = "import sys\ndef do_action(engine, args): return sorted(sys.modules)"
    async with bench(tmp_path) as slot:
        loaded = value(await slot.python(source))
    heavy = {"asyncio", "anyio", "aiohttp", "azure", "typing", "traceback", "subprocess", "socket", "logging"}
    assert heavy.isdisjoint(loaded)
    ours = {name for name in loaded if name.startswith(("batchflow", "node_agent."))}
    assert ours == {
        *("batchflow", "batchflow.support", "batchflow.support.linux"),
        *("node_agent.child", "node_agent.system", "node_agent.system.file_stamps", "node_agent.system.tail"),
        *(
            f"node_agent.child.{name}"
            for name in (
                *(
                    "channel",
                    "engine",
                    "frames",
                    "java",
                    "modules",
                    "process_state",
                    "runner",
                    "template",
                    "task_values",
                ),
            )
        ),
        *("batchflow.protocol", "batchflow.protocol.values", "batchflow.protocol.values.encoding"),
        *("batchflow.protocol.values.misfits", "batchflow.protocol.values.trees"),
    }


async def test_the_engine_knows_its_task_and_its_place(tmp_path: Path) -> None:
    """Labels, attempt, node, folders."""
    source = """
def do_action(engine, args):
    return [engine.task_id, engine.job_id, engine.client, engine.attempt, engine.node,
            str(engine.working_dir), str(engine.bundle_dir / 'task.py'), str(engine.outputs), __file__]
"""
    async with bench(tmp_path) as slot:
        *labels, place, file, outputs, own = value(await slot.python(source))
    assert labels == ["1", "job", "client", 1, "node-1"]
    assert (file, outputs, own) == (f"{place}/task.py", f"{place}/outputs", f"{place}/task.py")


async def test_a_child_dies_with_its_slot_and_the_slots_folder_with_it(tmp_path: Path) -> None:
    """Closing is idempotent, and leaves nothing on disk or in the process table."""
    async with bench(tmp_path) as slot:
        pid = value(await slot.python("import os\ndef do_action(engine, args): return os.getpid()"))
        await slot.slot.aclose()
        await eventually(lambda: not os.path.exists(f"/proc/{pid}"))
        assert not (tmp_path / "slots/slot-0").exists()
        with pytest.raises(RuntimeError, match="closed"):
            await slot.python("def do_action(engine, args): pass")


async def test_files_of_other_tasks_are_in_the_working_directory_of_one_task_alone(tmp_path: Path) -> None:
    """Its path is the argument. Neither the tasks of its pack nor those after it find the files."""
    body = """
import os
def do_action(engine, args):
    if args:
        with open(args[0]) as file:
            return file.read()
    return os.path.exists("inputs")
"""
    taken = tmp_path / "taken"
    taken.write_text("a,b")
    bundle, files = materialise(
        tmp_path, {"task.py": body, "inputs/own.txt": "own", "run.sh*": "#!/bin/sh\ncat $1"}
    )
    file = StoredFile(taken)
    path = "inputs/0/deep/out.csv"
    async with bench(tmp_path) as slot:
        plain = [slot.execution(bundle, "task.py", []) for _ in range(3)]
        taking = [slot.execution(bundle, command, [path]) for command in ("task.py", "task.py", "run.sh")]
        gone = slot.execution(bundle, "task.py", [path])
        for execution in taking:
            execution.files = {path: file}
        ended: list[Outcome] = []
        order = [plain[0], *taking[:2], plain[1], gone, taking[2], plain[2]]
        await slot.run_many(order, files, lambda _, outcomes: ended.extend(outcomes))
    assert "FileNotFoundError" in (ended.pop(4).error or "")
    assert [value(outcome) for outcome in ended] == [True, "a,b", "a,b", True, ["a,b"], True]
