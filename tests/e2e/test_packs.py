"""Tasks that share a message, and what each of them leaves to be dealt with before the next one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from batchflow import Session, Status
from tests.support.session_parts import parts_of


async def test_each_task_of_a_pack_keeps_its_own_output(session: Session) -> None:
    """Tasks that print share a message, and no output is lost.

    A child that has to wait for the slot's word between two tasks once took the next task for that word.
    """
    await session.update_files(
        {"says.py": b"def do_action(engine, args):\n    print(args[0])\n    return args[0]\n"}
    )
    results = [result async for result in session.map("says.py", range(300), ordered=True)]
    assert [result.value for result in results] == list(range(300))
    assert [result.stdout for result in results] == [f"{number}\n" for number in range(300)]


SOMETIMES_LONG = b"""
import pathlib, time

def do_action(engine, args):
    number, gate = args
    while number == 700 and not pathlib.Path(gate).exists():
        time.sleep(0.01)
    return number
"""


async def test_straggler_in_a_pack_holds_up_no_other_task(session: Session, tmp_path: Path) -> None:
    """All others end while it runs, although it shared a message with some of them.

    Those that stood behind it in its slot once waited for its end.
    """
    gate = tmp_path / "gate"
    await session.update_files({"sometimes.py": SOMETIMES_LONG})
    async for result in session.map("sometimes.py", [(number, str(gate)) for number in range(100)]):
        result.unwrap()
    found = set()
    async with asyncio.timeout(60.0):
        stream = session.map("sometimes.py", [(number, str(gate)) for number in range(1500)])
        async for result in stream:
            found.add(result.unwrap())
            if len(found) == 1499:
                assert 700 not in found
                gate.touch()
    assert found == set(range(1500))


async def test_tasks_that_come_fast_share_messages(session: Session) -> None:
    """A hundred known no-ops share a message; a lone one leaves by itself."""
    await session.run("echo.py", 1)
    async for result in session.map("echo.py", range(50)):
        result.unwrap()
    (link,) = parts_of(session).sender.links
    before = link.sent
    async for result in session.map("echo.py", range(2000)):
        result.unwrap()
    assert link.sent - before < 400
    before = link.sent
    assert await session.run("echo.py", "alone") == ["alone"]
    assert link.sent == before + 1


async def test_cancelling_tasks_of_a_pack_leaves_the_others_running(session: Session) -> None:
    """All of them came in one message."""
    async for result in session.map("echo.py", range(50)):
        result.unwrap()
    tasks = await session.submit_many("echo.py", range(400))
    for task in tasks[::2]:
        await task.cancel()
    for number, task in enumerate(tasks):
        outcome = await task.outcome()
        assert outcome.status in ((Status.SUCCEEDED, Status.CANCELLED)[: 1 + (number % 2 == 0)])
        assert outcome.status is Status.CANCELLED or outcome.value == [number]
