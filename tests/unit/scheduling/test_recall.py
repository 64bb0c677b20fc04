"""Tasks that stand behind a straggler in its slot: taken back, and run elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from batchflow.protocol.bundle import Bundle
from node_agent.bundles.workspace import Place
from node_agent.execution.outcomes import Outcome
from node_agent.execution.slot_queue import QueuedTask, SlotQueue
from node_agent.scheduling import events as to
from node_agent.scheduling.load_policy import STRAGGLER
from node_agent.scheduling.scheduler import Scheduler
from tests.support.agent_world import FakeSlot, behave, task
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


def learned(slots: int) -> Scheduler:
    """A scheduler that knows its command to take a millisecond."""
    scheduler = Scheduler(slots, "host", None, 0.0)
    scheduler.handle(to.Tick(), 0.0)
    scheduler.handle(to.Arrived(1, [task(0)], False, 0.0), 0.0)
    scheduler.handle(to.Prepared(0), 0.0)
    scheduler.handle(to.Ended(0, None, None, 0.0, 0.001, 0.5), 0.0)
    scheduler.handle(to.Freed(0), 0.0)
    scheduler.handle(to.ResultsAccepted([0]), 0.0)
    return scheduler


def test_companions_of_a_straggler_are_asked_back_and_handed_back() -> None:
    """On an agent of one slot there is no other slot to run them."""
    scheduler = learned(1)
    scheduler.handle(to.Arrived(2, [task(n) for n in (1, 2, 3)], False, 0.0), 1.0)
    assert to.Start(0, (1, 2, 3)) in scheduler.handle(to.Prepared(0), 1.0)
    deadline = scheduler.next_deadline()
    assert deadline is not None
    assert deadline <= 1.0 + STRAGGLER
    assert to.Recall(0) not in scheduler.handle(to.Tick(), 1.0 + STRAGGLER - 0.01)
    assert to.Recall(0) in scheduler.handle(to.Tick(), 1.0 + STRAGGLER)
    assert to.Recall(0) not in scheduler.handle(to.Tick(), 1.1 + STRAGGLER)
    back = scheduler.handle(to.Recalled(0, [2, 3]), 1.1 + STRAGGLER)
    assert [each for each in back if isinstance(each, to.HandBack)] == [
        to.HandBack(2, reason="straggler"),
        to.HandBack(3, reason="straggler"),
    ]
    assert to.SendResult(1) in scheduler.handle(to.Ended(1, None, None, 0.0, 9.0, 0.5), 10.0)


def test_companions_of_a_straggler_go_to_another_slot() -> None:
    """Where there is one, they do not leave the node."""
    scheduler = learned(2)
    scheduler.handle(to.Arrived(2, [task(n) for n in range(1, 5)], False, 0.0), 1.0)
    scheduler.handle(to.Prepared(0), 1.0)
    scheduler.handle(to.Prepared(1), 1.0)
    for number in (3, 4):
        scheduler.handle(to.Ended(number, None, None, 0.0, 0.001, 0.5), 1.01)
    scheduler.handle(to.Freed(1), 1.01)
    assert to.Recall(0) in scheduler.handle(to.Tick(), 1.01 + STRAGGLER)
    commands = scheduler.handle(to.Recalled(0, [2]), 1.01 + STRAGGLER)
    assert to.Prepare(1, (2,)) in commands
    assert not any(isinstance(each, to.HandBack) for each in commands)


def test_a_slot_that_goes_on_is_not_asked() -> None:
    """A pack that takes long in all holds up no task, as long as its tasks are short."""
    scheduler = learned(1)
    scheduler.handle(to.Arrived(2, [task(n) for n in range(1, 9)], False, 0.0), 1.0)
    scheduler.handle(to.Prepared(0), 1.0)
    for number in range(1, 8):
        now = 1.0 + number * STRAGGLER * 0.9
        commands = scheduler.handle(to.Ended(number, None, None, 0.0, 0.001, 0.5), now)
        assert to.Recall(0) not in commands


async def test_recall_while_the_directory_is_prepared_takes_every_task_back() -> None:
    """Nothing has begun, so nothing runs."""
    prepared = asyncio.Event()

    class Slow(FakeSlot):
        async def prepare(self, bundle: Bundle, files: Path) -> Place:
            await prepared.wait()
            return await super().prepare(bundle, files)

    slot = Slow(behave())
    tasks = [QueuedTask(number, task(number)) for number in range(3)]
    queue = SlotQueue(slot, tasks, lambda ended: None)
    running = asyncio.create_task(queue.run(Bundle(()), Path()))
    await asyncio.sleep(0)
    assert queue.recall() == tasks
    prepared.set()
    await running
    assert slot.begun == []
