"""A slot goes on with tasks that come while it works: with real child processes and programs."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

from node_agent.execution.outcomes import Outcome
from tests.support.slot_bench import bench, keep, materialise, value
from tests.support.waiting import eventually

GATED = """
import pathlib, time

def do_action(engine, args):
    begun, gate, number, *act = args
    with open(begun, "a") as file:
        file.write(f"{number}\\n")
    while not pathlib.Path(gate).exists():
        time.sleep(0.005)
    for each in act:
        exec(each)
    return number
"""


async def test_the_child_goes_on_with_what_follows(tmp_path: Path) -> None:
    """In order, each with its own outcome, files and words; also after one that ended its process."""
    acts = ["", "print('said')", "open('outputs/f', 'w').write('left')", "import os; os._exit(3)", ""]
    async with bench(tmp_path) as made:
        gate, begun = tmp_path / "gate", tmp_path / "begun"
        bundle, files = materialise(tmp_path, {"gated.py": GATED})
        executions = [
            made.execution(bundle, "gated.py", [str(begun), str(gate), number, act])
            for number, act in enumerate(acts)
        ]
        found: dict[int, Outcome] = {}
        running = asyncio.create_task(made.run_many(executions[:1], files, keep(found)))
        await eventually(begun.exists)
        made.follow(executions[1:3])
        made.follow(executions[3:])
        gate.touch()
        await running
        assert [found[index].kind for index in found] == [None, None, None, "WorkerDied", None]
        assert [value(found[index]) for index in (0, 1, 2, 4)] == [0, 1, 2, 4]
        assert [found[index].stdout for index in found] == ["", "said\n", "", "", ""]
        assert [len(found[index].outputs) for index in found] == [0, 0, 1, 0, 0]
        assert begun.read_text().split() == ["0", "1", "2", "3", "4"]


async def test_what_follows_can_be_taken_back(tmp_path: Path) -> None:
    """What is added afterwards runs when the worker has passed over what was taken back."""
    async with bench(tmp_path) as made:
        gate, begun = tmp_path / "gate", tmp_path / "begun"
        bundle, files = materialise(tmp_path, {"gated.py": GATED})
        executions = [
            made.execution(bundle, "gated.py", [str(begun), str(gate), number]) for number in range(3)
        ]
        found: dict[int, Outcome] = {}
        running = asyncio.create_task(made.run_many(executions[:1], files, keep(found)))
        await eventually(begun.exists)
        made.follow([executions[1]])
        assert made.recall() == 1
        made.follow([executions[2]])
        gate.touch()
        await running
        assert list(found) == [0, 1]
        assert begun.read_text().split() == ["0", "2"]


async def test_the_child_does_not_begin_what_is_late(tmp_path: Path) -> None:
    """It gives back what it was sent and had no time for, and takes what it is sent afterwards."""
    async with bench(tmp_path) as made:
        gate, begun = tmp_path / "gate", tmp_path / "begun"
        bundle, files = materialise(tmp_path, {"gated.py": GATED})
        executions = [
            made.execution(bundle, "gated.py", [str(begun), str(gate), number]) for number in range(3)
        ]
        found: dict[int, Outcome] = {}
        running = asyncio.create_task(made.run_many(executions[:1], files, keep(found)))
        await eventually(begun.exists)
        made.follow(executions[1:], start_by=time.monotonic() + 0.05)
        await asyncio.sleep(0.06)
        gate.touch()
        await running
        assert list(found) == [0]
        assert [task.number for task in made.left] == [1, 2]
        await made.run_many(executions[1:], files, keep(found))
        assert begun.read_text().split() == ["0", "1", "2"]


async def test_a_program_does_not_begin_when_it_is_late(tmp_path: Path) -> None:
    """Nor does anything after it."""
    async with bench(tmp_path) as made:
        bundle, files = materialise(tmp_path, {"write.sh": '#!/bin/sh\necho >> "$1"\n'})
        executions = [made.execution(bundle, "write.sh", [str(tmp_path / "ran")]) for _ in range(2)]
        await made.run_many(executions, files, keep({}), start_by=time.monotonic() - 0.001)
        assert [task.number for task in made.left] == [0, 1]
        assert not (tmp_path / "ran").exists()


async def test_programs_follow_and_are_followed(tmp_path: Path) -> None:
    """They are not the child's, and wait for their turn in the slot."""
    script = '#!/bin/sh\necho $1 >> "$2"; while [ ! -e "$3" ]; do sleep 0.01; done\n'
    async with bench(tmp_path) as made:
        gate, begun = tmp_path / "gate", tmp_path / "begun"
        bundle, files = materialise(tmp_path, {"gated.py": GATED, "gated.sh": script})
        program = made.execution(bundle, "gated.sh", [0, str(begun), str(gate)])
        action = made.execution(bundle, "gated.py", [str(begun), str(gate), 1])
        found: dict[int, Outcome] = {}
        running = asyncio.create_task(made.run_many([program], files, keep(found)))
        await eventually(begun.exists)
        made.follow([action])
        made.follow([replace(program, args=[2, str(begun), str(gate)])])
        gate.touch()
        await running
        assert begun.read_text().split() == ["0", "1", "2"]
        assert list(found) == [0, 1, 2]


async def test_no_task_runs_twice_when_a_child_has_had_its_number(tmp_path: Path) -> None:
    """Answers that came before they were asked for count as well."""
    async with bench(tmp_path, child_tasks=5) as made:
        gate, begun = tmp_path / "gate", tmp_path / "begun"
        gate.touch()
        bundle, files = materialise(tmp_path, {"gated.py": GATED})
        executions = [
            made.execution(bundle, "gated.py", [str(begun), str(gate), number]) for number in range(13)
        ]
        found: dict[int, Outcome] = {}
        await made.run_many(executions, files, keep(found))
        assert list(found) == list(range(13))
        assert begun.read_text().split() == [str(number) for number in range(13)]
