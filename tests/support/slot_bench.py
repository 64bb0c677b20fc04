"""Slots, bundles and tasks for tests, made of text."""

from __future__ import annotations

import asyncio
import hashlib
import os
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from batchflow.ports.broker import QueueRef
from batchflow.protocol.bundle import Bundle, BundleFile
from batchflow.protocol.documents import AgentConfig, ContainerAccess, QueueAccess
from batchflow.protocol.values.encoding import Decoder, container_size, is_container
from batchflow.protocol.wire import TaskItem
from node_agent.bundles.workspace import Workspace
from node_agent.execution.outcomes import Execution, Outcome
from node_agent.execution.slot import Slot
from node_agent.execution.slot_processes import SlotProcesses
from node_agent.execution.slot_queue import QueuedTask, SlotQueue
from node_agent.system.file_stamps import stamp
from tests.support.waiting import BOUND

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    from batchflow.protocol.wire import EventItem

    Done = Callable[[int, Sequence[Outcome]], None]

_QUEUE = QueueAccess(QueueRef("namespace", "queue"), "Endpoint=sb://namespace/")
_CONTAINER = ContainerAccess("https://account/container", "signature")
ANY_TIME = 1e12
"""A moment of the monotonic clock that does not come."""
_ITEM = TaskItem("client", "job", "0", "task.py", [], "run:0", "b" * 64)


def config(**changes: Any) -> AgentConfig:
    """Return an agent's settings."""
    plain = AgentConfig("pool", (_QUEUE,), (_QUEUE,), _CONTAINER, _CONTAINER, 60.0)
    return replace(plain, **{"grace": 1.0, **changes})


def materialise(root: Path, contents: Mapping[str, str | bytes]) -> tuple[Bundle, Path]:
    """Make a bundle, and its folder as the cache does. Names that end in "*" are executable."""
    files, data = [], {}
    for name, content in contents.items():
        raw = content.encode() if isinstance(content, str) else content
        plain = name.removesuffix("*")
        files.append(BundleFile(plain, hashlib.sha256(raw).hexdigest(), len(raw), name != plain))
        data[plain] = raw
    bundle = Bundle.of(files)
    folder = root / "cached" / bundle.hash
    for file in bundle.files:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[file.name])
        os.chmod(path, 0o555 if file.executable or data[file.name].startswith(b"#!") else 0o444)
        stamp(str(path))
    return bundle, folder


@asynccontextmanager
async def bench(root: Path, **changes: Any) -> AsyncIterator[Bench]:
    """Run a slot for a block; `changes`: of the agent's settings. Nothing may be left of it afterwards."""
    made = Bench(root, **changes)
    try:
        async with asyncio.timeout(2 * BOUND):
            yield made
    finally:
        await made.slot.aclose()


class BenchSlot(Slot):
    """A slot that tells which process its Python tasks run in."""

    def __init__(self, index: int, workspace: Workspace, processes: SlotProcesses, *others: Any) -> None:
        super().__init__(index, workspace, processes, *others)
        self.processes = processes

    @property
    def child_pid(self) -> int | None:
        """Return the process that Python tasks run in; None while there is none."""
        child = self.processes.child
        return child.pid if child is not None and child.alive else None


class Bench:
    """One slot, and short ways to run something in it."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self.root = root
        self.events: list[EventItem] = []
        self.slot = BenchSlot.open(
            0,
            root / "slots",
            config(**changes),
            on_event=lambda _, event: self.events.append(event),
            node="node-1",
        )
        self._count = 0
        self._given = 0
        self._queue: SlotQueue | None = None

    def execution(
        self, bundle: Bundle, command: str, args: list[Any], session: str = "client", **limits: Any
    ) -> Execution:
        self._count += 1
        return Execution(
            f"run:{self._count}", str(self._count), session, "job", command, args, bundle, 1, **limits
        )

    async def run(
        self, contents: Mapping[str, str | bytes], command: str, *args: Any, **limits: Any
    ) -> Outcome:
        """Run one task of that bundle."""
        bundle, files = materialise(self.root, contents)
        return await self.execute(self.execution(bundle, command, list(args), **limits), files)

    async def execute(self, execution: Execution, files: Path) -> Outcome:
        """Run one task."""
        found: list[Outcome] = []
        await self.run_many([execution], files, lambda _, outcomes: found.extend(outcomes))
        return found[0]

    async def run_many(
        self, executions: Sequence[Execution], files: Path, done: Done, start_by: float = ANY_TIME
    ) -> None:
        """Run tasks of one bundle; `done` gets the outcomes as they come, with the index of the first."""
        self._queue = queue(self.slot, executions, done, start_by)
        self._given = len(executions)
        await self._queue.run(executions[0].bundle, files)

    @property
    def left(self) -> Sequence[QueuedTask]:
        """Return the tasks that have not ended."""
        return () if self._queue is None else self._queue.tasks

    def follow(self, executions: Sequence[Execution], start_by: float = ANY_TIME) -> None:
        """Add these tasks to those that run."""
        assert self._queue is not None
        self._queue.add(queued(executions, self._given, start_by))
        self._given += len(executions)

    def recall(self) -> int:
        """Take back the tasks that have not begun; return how many still run, or have run."""
        assert self._queue is not None
        self._given -= len(self._queue.recall())
        return self._given

    def messages(self, kind: str) -> list[str]:
        """Return the messages of the events of a kind."""
        return [event.message for event in self.events if event.kind == kind]

    async def python(self, source: str, *args: Any, **limits: Any) -> Outcome:
        """Run one task whose file is this source."""
        return await self.run({"task.py": source}, "task.py", *args, **limits)


def queued(executions: Sequence[Execution], first: int = 0, start_by: float = ANY_TIME) -> list[QueuedTask]:
    """Number the tasks from `first`, as a slot's queue has them."""
    tasks = []
    for number, execution in enumerate(executions, first):
        task = QueuedTask(number, _ITEM, start_by)
        task.execution = execution
        tasks.append(task)
    return tasks


def queue(slot: Slot, executions: Sequence[Execution], done: Done, start_by: float = ANY_TIME) -> SlotQueue:
    """Return the queue of a slot that was given these tasks."""

    def ended(found: Sequence[tuple[QueuedTask, Outcome]]) -> None:
        done(found[0][0].number, [outcome for _, outcome in found])

    return SlotQueue(slot, queued(executions, start_by=start_by), ended)


def keep(found: dict[int, Outcome]) -> Callable[[int, Sequence[Outcome]], None]:
    """Return a callback that keeps the outcomes of `run_many` by their index."""
    return lambda first, outcomes: found.update(enumerate(outcomes, first))


def value(outcome: Outcome) -> Any:
    """Return the value of a task, which must have succeeded."""
    assert outcome.error is None, (outcome.error, outcome.traceback, outcome.stderr)
    if outcome.value is None:
        return None
    assert isinstance(outcome.value, bytes)
    data = outcome.value
    return Decoder().decode(data[: container_size(data)] if is_container(data) else data)
