"""Tasks through the three services and back, with real agents on real nodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from batchflow import Client, ConfigurationError, Pool, Session, Status, TaskError
from batchflow.errors import (
    ResultNotSerializable,
    ResultTooLarge,
    TaskCancelled,
    TaskFailed,
    TaskImportError,
    TaskRejected,
    TaskTimeout,
    WorkerDied,
)


async def test_a_command_line_is_split_as_a_shell_would(session: Session) -> None:
    """The original's one string reaches do_action as a list."""
    task = await session.submit("echo.py", "java -Xmx64m -jar 'pi two.jar' 100")
    assert await task == ["java", "-Xmx64m", "-jar", "pi two.jar", "100"]


async def test_arguments_are_any_json(session: Session) -> None:
    """What is not a lone string arrives as it was given."""
    assert await session.run("echo.py", "a b", 2, None) == ["a b", 2, None]
    assert await session.run("echo.py", args={"x": [1, {"y": 2.5}]}) == [{"x": [1, {"y": 2.5}]}]
    assert await session.run("echo.py", args=["a b"]) == ["a b"]
    assert await session.run("echo.py") == []


async def test_an_async_do_action(session: Session) -> None:
    """A coroutine is awaited, and its pair of result and error is read as the original's."""
    assert await session.run("echo_async.py", "x") == ["x"]


async def test_results_come_from_both_nodes(pool: Pool, session: Session) -> None:
    """Two nodes share one queue, and results tell which host ran them."""
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
async def test_a_fault_says_exactly_what_it_was(
    session: Session, command: str, kind: type[TaskError], text: str
) -> None:
    """Each fault of a task is a typed outcome, and the agent goes on."""
    task = await session.submit(command, args=[1])
    with pytest.raises(kind, match=text.replace(".", r"\.")):
        await task
    assert await session.run("echo.py", "still", "there") == ["still", "there"]


async def test_a_reported_error_keeps_its_result(session: Session) -> None:
    """A task that returns an error beside its result loses neither."""
    result = await (await session.submit("reports_error.py")).outcome()
    assert (result.value, result.error) == ("half of it", "the other half is missing")


async def test_a_timeout_kills_the_task(session: Session) -> None:
    """A task past its limit ends with TaskTimeout."""
    with pytest.raises(TaskTimeout, match=r"0\.3"):
        await session.run("sleeps.py", "60", timeout=0.3)


async def test_a_session_has_a_timeout_for_its_tasks(pool: Pool) -> None:
    """What a session says holds for tasks that say nothing."""
    async with pool.session(timeout=0.3) as session:
        patient = await session.submit("sleeps.py", "0.6", timeout=30)
        with pytest.raises(TaskTimeout, match=r"0\.3"):
            await session.run("sleeps.py", "60")
        assert await patient == "slept"


async def test_output_is_captured(session: Session) -> None:
    """What a task prints comes with its result."""
    result = await (await session.submit("prints.py")).outcome()
    assert (result.stdout, result.stderr) == ("to stdout\n", "to stderr\n")


async def test_an_executable(session: Session) -> None:
    """The value of an executable is the lines that it printed."""
    assert await session.run("hello.sh", "you", 2) == ["hello you", "and 2"]


async def test_a_running_task_is_cancelled(session: Session) -> None:
    """Cancelling kills what runs."""
    running = await session.submit("sleeps.py", "60")
    await running.accepted()
    await running.cancel()
    with pytest.raises(TaskCancelled):
        await running


async def test_files_that_a_task_leaves(session: Session) -> None:
    """They are named in the result, and can be read there."""
    result = await (await session.submit("leaves_files.py", "a", "b")).outcome()
    assert sorted(result.files) == ["a.txt", "deep/b.txt"]
    with await result.open("deep/b.txt") as file:
        assert file.read() == b"this is b"
    with pytest.raises(ConfigurationError, match=r"it left: .*a\.txt"):
        await result.open("c.txt")


async def test_large_values_travel_by_reference(session: Session) -> None:
    """Neither arguments nor results are bound by the size of a message."""
    text = "x" * 600_000
    assert await session.run("echo.py", args=[text]) == [text]


async def test_a_map_over_many_inputs(session: Session) -> None:
    """Results keep their input's place, and come in order when asked to."""
    results = [result async for result in session.map("echo.py", range(200), ordered=True)]
    assert [result.index for result in results] == list(range(200))
    assert [result.value for result in results] == [[number] for number in range(200)]


async def test_two_clients_get_their_own(pool: Pool) -> None:
    """Two sessions of one job receive only what is theirs."""
    async with pool.session("left", job="both") as left, pool.session("right", job="both") as right:
        for number in range(20):
            await left.submit("echo.py", "left", number)
            await right.submit("echo.py", "right", number)
        lefts = [result.value async for result in left.results()]
        rights = [result.value async for result in right.results()]
    assert sorted(lefts) == [["left", number] for number in range(20)]
    assert sorted(rights) == [["right", number] for number in range(20)]


async def test_new_files_are_live_at_once(session: Session) -> None:
    """A changed task file reaches tasks submitted from then on, and no others."""
    await session.update_files({"which.py": b"def do_action(engine, args):\n    return 'first'\n"})
    first = await session.submit("which.py")
    await session.update_files({"which.py": b"def do_action(engine, args):\n    return 'second'\n"})
    second = await session.submit("which.py")
    assert (await first, await second) == ("first", "second")


async def test_limits_of_agents_are_settings(client: Client) -> None:
    """What an agent keeps, takes and waits for is the deployment's to say."""
    agent = replace(client.settings.agent, output_limit=4, result_limit=1000)
    async with Client(replace(client.settings, agent=agent)) as strict:
        pool = await strict.ensure_pool("strict", files=[TASKS], nodes=1)
        async with pool.session() as session:
            with pytest.raises(ResultTooLarge, match="1000"):
                await session.run("echo.py", args=["x" * 2000])
            result = await (await session.submit("prints.py")).outcome()
            assert result.stdout == "[10 bytes left out]\n"
        await pool.delete()
