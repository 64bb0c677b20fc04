"""Tasks that share a message, and what each of them leaves to be dealt with before the next one."""

from __future__ import annotations

from batchflow import Session


async def test_each_task_of_a_pack_keeps_what_it_printed(session: Session) -> None:
    """Tasks that print ride together, and none is lost.

    A child that has to wait for the slot's word between two tasks once took the next task for that word.
    """
    await session.update_files(
        {"says.py": b"def do_action(engine, args):\n    print(args[0])\n    return args[0]\n"}
    )
    results = [result async for result in session.map("says.py", range(300), ordered=True)]
    assert [result.value for result in results] == list(range(300))
    assert [result.stdout for result in results] == [f"{number}\n" for number in range(300)]
