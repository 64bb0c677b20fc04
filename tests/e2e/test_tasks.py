"""Tasks through the three services and back, with real agents on real nodes."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from batchflow import Client, ConfigurationError, Pool, Session, Status, TaskError
from batchflow.errors import (
    DependencyFailed,
    ResultNotSerializable,
    ResultTooLarge,
    TaskCancelled,
    TaskFailed,
    TaskImportError,
    TaskRejected,
    TaskTimeout,
    WorkerDied,
)


async def test_command_line_is_split_as_a_shell_would(session: Session) -> None:
    """One string reaches `do_action` as a list."""
    task = await session.submit("echo.py", "java -Xmx64m -jar 'pi two.jar' 100")
    assert await task == ["java", "-Xmx64m", "-jar", "pi two.jar", "100"]


async def test_arguments_of_any_json_arrive_unchanged(session: Session) -> None:
    """Only one lone positional string is a command line, which is split."""
    assert await session.run("echo.py", "a b", 2, None) == ["a b", 2, None]
    assert await session.run("echo.py", args={"x": [1, {"y": 2.5}]}) == [{"x": [1, {"y": 2.5}]}]
    assert await session.run("echo.py", args=["a b"]) == ["a b"]
    assert await session.run("echo.py") == []


async def test_values_keep_their_types_both_ways(session: Session) -> None:
    """What JSON does not hold, in messages and in blobs."""
    given = [float("nan"), (1, {2}), b"x", date(2024, 2, 29), {1: Decimal("1.10")}, 2**70, Path("/a")]
    assert repr(await session.run("echo.py", args=given)) == repr(given)
    large = [(1, b"x" * 300_000)]
    assert await session.run("echo.py", args=large) == large


async def test_async_do_action_is_awaited(session: Session) -> None:
    """Its pair of result and error is read as that of a plain function."""
    assert await session.run("echo_async.py", "x") == ["x"]


async def test_two_nodes_share_one_queue(pool: Pool, session: Session) -> None:
    """The results tell which host ran them."""
    await pool.wait_ready(timeout=30)
    tasks = [await session.submit("sleeps.py", "0.2") for _ in range(6)]
    hosts = {result.node async for result in session.results()}
    assert len(hosts) == 2
    assert all(task.status is Status.SUCCEEDED for task in tasks)


TASKS = Path(__file__).parent / "tasks"
FAULTS = [
    ("raises.py", TaskFailed, "these arguments are wrong: 1"),
    ("reports_error.py", TaskFailed, "the other half is missing"),
    ("no_such_file.py", TaskRejected, "no_such_file.py"),
    ("../echo.py", TaskRejected, "../echo.py"),
    ("no_action.py", TaskImportError, "do_action"),
    ("does_not_import.py", TaskImportError, "a_module_that_is_not_there"),
    ("not_json.py", ResultNotSerializable, "object"),
    ("dies.py", WorkerDied, "3"),
    ("fails.sh", TaskFailed, "7"),
]


@pytest.mark.parametrize(("command", "kind", "text"), FAULTS)
async def test_each_fault_of_a_task_is_a_typed_outcome(
    session: Session, command: str, kind: type[TaskError], text: str
) -> None:
    """The agent goes on."""
    task = await session.submit(command, args=[1])
    with pytest.raises(kind, match=text.replace(".", r"\.")):
        await task
    assert await session.run("echo.py", "still", "there") == ["still", "there"]


async def test_reported_error_keeps_its_result(session: Session) -> None:
    """A task that returns an error beside its result loses neither."""
    result = await (await session.submit("reports_error.py")).outcome()
    assert (result.value, result.error) == ("half of it", "the other half is missing")


async def test_a_task_runs_on_a_node_that_has_what_it_requires(session: Session) -> None:
    """A node of one slot, without GPU; what none has is rejected."""
    fits = {"slots": "all", "memory": 1024**2, "tags": ["dedicated"]}
    assert await session.run("echo.py", "fits", requires=fits) == ["fits"]
    for required in ({"slots": 2}, {"tags": ["elsewhere"]}):
        with pytest.raises(TaskRejected, match="requires"):
            await session.run("echo.py", "not", requires=required)


async def test_timeout_kills_the_task(session: Session) -> None:
    """A task past its limit ends with `TaskTimeout`."""
    with pytest.raises(TaskTimeout, match=r"0\.3"):
        await session.run("sleeps.py", "60", timeout=0.3)


async def test_timeout_of_a_session_holds_for_tasks_without_one(pool: Pool) -> None:
    """A task's own timeout goes before it."""
    async with pool.session(timeout=0.3) as session:
        patient = await session.submit("sleeps.py", "0.6", timeout=30)
        with pytest.raises(TaskTimeout, match=r"0\.3"):
            await session.run("sleeps.py", "60")
        assert await patient == "slept"


async def test_output_of_a_task_comes_with_its_result(session: Session) -> None:
    """Both streams are captured."""
    result = await (await session.submit("prints.py")).outcome()
    assert (result.stdout, result.stderr) == ("to stdout\n", "to stderr\n")


async def test_executable_returns_the_lines_that_it_printed(session: Session) -> None:
    """They are its value."""
    assert await session.run("hello.sh", "you", 2) == ["hello you", "and 2"]


async def test_cancelling_kills_a_running_task(session: Session) -> None:
    """The outcome is a cancellation."""
    running = await session.submit("sleeps.py", "60")
    await running.accepted()
    await running.cancel()
    with pytest.raises(TaskCancelled):
        await running


async def test_files_that_a_task_leaves_are_named_in_its_result(session: Session) -> None:
    """They can be read there."""
    result = await (await session.submit("leaves_files.py", "a", "b")).outcome()
    assert sorted(result.files) == ["a.txt", "deep/b.txt"]
    with await result.open("deep/b.txt") as file:
        assert file.read() == b"this is b"
    with pytest.raises(ConfigurationError, match=r"it left: .*a\.txt"):
        await result.open("c.txt")


async def test_files_go_from_task_to_task(session: Session) -> None:
    """To Python files, functions and programs, as paths in their working directories; also to a `map`."""
    first = await session.submit("leaves_files.py", "a", "b", task_id="first")
    other = await session.submit("leaves_files.py", "a", "c")
    one, two = first.file("a.txt"), other.file("deep/c.txt")
    text = await session.submit("reads_files.py", one, other.file("a.txt"), two)
    size = await session.submit(os.path.getsize, one)
    lines = await session.submit("reads_files.sh", one, two)
    lacking = await session.submit("reads_files.py", first.file("c.txt"))
    assert await text == [
        ["inputs/0/a.txt", "this is a"],
        ["inputs/1/a.txt", "this is a"],
        ["inputs/2/deep/c.txt", "this is c"],
    ]
    assert await size == 9
    assert await lines == ["this is athis is c"]
    with pytest.raises(DependencyFailed, match=r"first .* left no file 'c.txt' .*: a\.txt, deep/b\.txt"):
        await lacking
    found = [each.value async for each in session.map("reads_files.py", [one, two] * 4, ordered=True)]
    expected = [[["inputs/0/a.txt", "this is a"]], [["inputs/0/deep/c.txt", "this is c"]]]
    assert found == expected * 4


async def test_large_arguments_and_results_travel_by_reference(session: Session) -> None:
    """Neither is bound by the size of a message."""
    text = "x" * 600_000
    assert await session.run("echo.py", args=[text]) == [text]


async def test_map_over_many_inputs_keeps_their_places(session: Session) -> None:
    """Results come in order when asked to."""
    results = [result async for result in session.map("echo.py", range(200), ordered=True)]
    assert [result.index for result in results] == list(range(200))
    assert [result.value for result in results] == [[number] for number in range(200)]


async def test_two_sessions_of_one_job_get_their_own_results(pool: Pool) -> None:
    """Neither gets a result of the other."""
    async with pool.session("left", job="both") as left, pool.session("right", job="both") as right:
        for number in range(20):
            await left.submit("echo.py", "left", number)
            await right.submit("echo.py", "right", number)
        lefts = [result.value async for result in left.results()]
        rights = [result.value async for result in right.results()]
    assert sorted(lefts) == [["left", number] for number in range(20)]
    assert sorted(rights) == [["right", number] for number in range(20)]


async def test_changed_files_reach_tasks_submitted_from_then_on(session: Session) -> None:
    """Tasks that were submitted before keep the old files."""
    await session.update_files({"which.py": b"def do_action(engine, args):\n    return 'first'\n"})
    first = await session.submit("which.py")
    await session.update_files({"which.py": b"def do_action(engine, args):\n    return 'second'\n"})
    second = await session.submit("which.py")
    assert (await first, await second) == ("first", "second")


async def test_limits_of_agents_follow_the_settings(client: Client) -> None:
    """An agent keeps, takes and waits for what the deployment says."""
    agent = replace(client.settings.agent, output_limit=4, result_limit=1000)
    async with Client(replace(client.settings, agent=agent)) as strict:
        pool = await strict.ensure_pool("strict", files=[TASKS], nodes=1)
        async with pool.session() as session:
            with pytest.raises(ResultTooLarge, match="1000"):
                await session.run("echo.py", args=["x" * 2000])
            result = await (await session.submit("prints.py")).outcome()
            assert result.stdout == "[10 bytes left out]\n"
        await pool.delete()
