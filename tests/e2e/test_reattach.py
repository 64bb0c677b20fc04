"""A session outlives its client: killed for real, opened again by its name."""

from __future__ import annotations

import asyncio
import sys
import uuid
from pathlib import Path

import pytest

from batchflow import Client, Pool
from batchflow.errors import MailboxInUse

PROGRAM = Path(__file__).parent / "crashing_client.py"


async def _shown_until_killed(*command: str, after: int) -> list[str]:
    """Run a Python program, kill it when it has shown so many tasks; return all that it has shown."""
    client = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    assert client.stdout is not None
    shown: list[str] = []
    async for line in client.stdout:
        shown.append(line.decode().strip())
        if len(shown) == after:
            client.kill()
    await client.wait()
    return shown


@pytest.mark.parametrize("shown_before", [1, 25])
async def test_killed_client_finds_all_outcomes_when_it_returns(
    pool: Pool, cloud_config: Path, shown_before: int
) -> None:
    """After kill -9 only the outcomes of its last moment are shown again, and marked."""
    name, tasks = f"killed-{uuid.uuid4().hex[:8]}", 60
    shown = await _shown_until_killed(str(PROGRAM), str(cloud_config), name, str(tasks), after=shown_before)
    async with pool.session(name, job="crash") as session:
        results = [result async for result in session.results()]
    again = [result for result in results if result.task_id in shown]
    assert {*shown, *(result.task_id for result in results)} == {str(number) for number in range(tasks)}
    assert len(results) == len({result.task_id for result in results})
    assert all(result.repeated for result in again)


@pytest.mark.parametrize("shown_before", [2, 20])
async def test_a_workflow_goes_on_after_its_client_was_killed(
    pool: Pool, cloud_config: Path, shown_before: int
) -> None:
    """Each task is shown once, or again and marked; those that waited get the values and files of
    what was shown."""
    name, program = f"killed-{uuid.uuid4().hex[:8]}", PROGRAM.with_name("crashing_workflow.py")
    shown = await _shown_until_killed(str(program), str(cloud_config), name, after=shown_before)
    async with pool.session(name, job="crash") as session:
        results = [result async for result in session.results()]
    expected = {*(f"a{n}" for n in range(24)), *(f"b{n}" for n in range(0, 24, 2)), "sum", "f0", "f1", "read"}
    assert {*shown, *(result.task_id for result in results)} == expected
    assert len(results) == len({result.task_id for result in results})
    assert all(result.repeated for result in results if result.task_id in shown)
    values = {result.task_id: result.value for result in results}
    assert values["sum"] == sum(range(24))
    assert values["read"] == [[f"inputs/{n}/{n}.txt", f"this is {n}"] for n in range(2)]


async def test_session_with_a_journal_shows_no_outcome_twice_after_a_kill(
    pool: Pool, cloud_config: Path, tmp_path: Path
) -> None:
    """One outcome may have been delivered and not have been printed yet."""
    name, tasks, journal = f"killed-{uuid.uuid4().hex[:8]}", 60, str(tmp_path / "shown")
    client = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), str(cloud_config), name, str(tasks), journal),
        stdout=asyncio.subprocess.PIPE,
    )
    assert client.stdout is not None
    shown: list[str] = []
    async for line in client.stdout:
        shown.append(line.decode().strip())
        if len(shown) == 20:
            client.kill()
    await client.wait()
    async with pool.session(name, job="crash", journal=journal) as session:
        shown += [result.task_id async for result in session.results()]
    assert len(shown) == len(set(shown))
    assert len(shown) >= tasks - 1


async def test_second_client_of_a_session_is_told_its_holder(client: Client, pool: Pool) -> None:
    """A mailbox has one holder, and the second client learns at once who that is."""
    async with pool.session("held", job="crash") as first:
        await first.flush()
        with pytest.raises(MailboxInUse, match="process"):
            await pool.session("held", job="crash")


@pytest.mark.parametrize("tasks", [1, 2])
async def test_session_closed_at_once_is_waited_for_by_the_next(pool: Pool, tasks: int) -> None:
    """After submit, close without `flush` and open by name, `results()` waits for all that was submitted."""
    name = f"brief-{uuid.uuid4().hex[:8]}"
    async with pool.session(name, job="crash") as first:
        await first.submit_many("sleeps.py", [0.5] * tasks)
    async with pool.session(name, job="crash") as second:
        assert len([result async for result in second.results()]) == tasks
