"""Tasks that a slot has not begun are taken back from it: with real child processes and programs."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from node_agent.execution.outcomes import Outcome
from tests.support.slot_bench import bench, keep, materialise, value
from tests.support.waiting import eventually

GATED = """
import pathlib, time

def do_action(engine, args):
    begun, gate = map(pathlib.Path, args[:2])
    begun.touch()
    while not gate.exists():
        time.sleep(0.005)
    return args[2]
"""


async def test_what_has_not_begun_is_taken_back(tmp_path: Path) -> None:
    """It never begins, and the child goes on with what it is given next."""
    async with bench(tmp_path) as made:
        gate = tmp_path / "gate"
        bundle, files = materialise(tmp_path, {"gated.py": GATED})

        def execution(number: int) -> Any:
            arguments = [str(tmp_path / f"begun-{number}"), str(gate), number]
            return made.execution(bundle, "gated.py", arguments)

        await made.slot.ready()
        found: dict[int, Outcome] = {}
        running = asyncio.create_task(
            made.run_many([execution(number) for number in range(5)], files, keep(found))
        )
        await eventually((tmp_path / "begun-0").exists)
        child = made.slot.child_pid
        assert made.recall() == 1
        assert made.recall() == 1
        gate.touch()
        await running
        assert [value(found[index]) for index in found] == [0]
        more: dict[int, Outcome] = {}
        await made.run_many([execution(number) for number in range(10, 14)], files, keep(more))
        assert [value(more[index]) for index in range(4)] == [10, 11, 12, 13]
        assert made.slot.child_pid == child
        assert sorted(path.name for path in tmp_path.glob("begun-*")) == [
            "begun-0", "begun-10", "begun-11", "begun-12", "begun-13",
        ]  # fmt: skip


async def test_a_child_that_has_begun_nothing_gives_all_back(tmp_path: Path) -> None:
    """It had no processor: the slot is free, and goes on with what it is given next."""
    async with bench(tmp_path) as made:
        gate = tmp_path / "gate"
        gate.touch()
        bundle, files = materialise(tmp_path, {"gated.py": GATED})

        def execution(number: int) -> Any:
            return made.execution(bundle, "gated.py", [str(tmp_path / f"begun-{number}"), str(gate), number])

        first: dict[int, Outcome] = {}
        await made.run_many([execution(0)], files, keep(first))
        child = made.slot.child_pid
        assert child is not None
        os.kill(child, signal.SIGSTOP)
        found: dict[int, Outcome] = {}
        running = asyncio.create_task(
            made.run_many([execution(number) for number in (1, 2, 3)], files, keep(found))
        )
        await eventually(lambda: made.slot.running)
        assert made.recall() == 0
        async with asyncio.timeout(10):
            await running
        os.kill(child, signal.SIGCONT)
        more: dict[int, Outcome] = {}
        await made.run_many([execution(4)], files, keep(more))
        assert (value(first[0]), found, value(more[0])) == (0, {}, 4)
        assert made.slot.child_pid == child
        assert sorted(path.name for path in tmp_path.glob("begun-*")) == ["begun-0", "begun-4"]


async def test_recall_from_a_child_that_dies_takes_back_what_has_not_begun(tmp_path: Path) -> None:
    """The straggler's end is its outcome; what was taken back does not begin in the next child either."""
    source = GATED.replace("return args[2]", "import os; os._exit(3)")
    async with bench(tmp_path) as made:
        gate = tmp_path / "gate"
        bundle, files = materialise(tmp_path, {"gated.py": source})
        executions = [
            made.execution(bundle, "gated.py", [str(tmp_path / f"begun-{number}"), str(gate), number])
            for number in range(3)
        ]
        found: dict[int, Outcome] = {}
        running = asyncio.create_task(made.run_many(executions, files, keep(found)))
        await eventually((tmp_path / "begun-0").exists)
        assert made.recall() == 1
        gate.touch()
        await running
        assert {index: outcome.kind for index, outcome in found.items()} == {0: "WorkerDied"}
        assert not (tmp_path / "begun-1").exists()


async def test_programs_that_wait_their_turn_are_taken_back(tmp_path: Path) -> None:
    """They need no child to tell."""
    script = "#!/bin/sh\ntouch $1; while [ ! -e $2 ]; do sleep 0.01; done\n"
    async with bench(tmp_path) as made:
        gate = tmp_path / "gate"
        bundle, files = materialise(tmp_path, {"gated.sh": script})
        executions = [
            made.execution(bundle, "gated.sh", [str(tmp_path / f"begun-{number}"), str(gate)])
            for number in range(3)
        ]
        found: dict[int, Outcome] = {}
        running = asyncio.create_task(made.run_many(executions, files, keep(found)))
        await eventually((tmp_path / "begun-0").exists)
        assert made.recall() == 1
        gate.touch()
        await running
        assert list(found) == [0]
