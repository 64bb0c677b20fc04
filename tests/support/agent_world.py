"""The real agent in this process, on memory ports; its slots run coroutines instead of programs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from batchflow.model import Status
from batchflow.ports.broker import Broker, OutgoingMessage, QueueRef, QueueSpec
from batchflow.protocol import documents, wire
from batchflow.protocol.bundle import Bundle
from batchflow.testing import MemoryBroker, MemoryContainer, MemoryStorage
from node_agent.agent import Agent, Parts
from node_agent.bundles.task_files import FileCache
from node_agent.bundles.workspace import Place
from node_agent.control.broadcasts import BroadcastParts
from node_agent.control.event_batcher import EventBatcher
from node_agent.execution import commands
from node_agent.execution.outcomes import Execution, Outcome
from node_agent.execution.python_worker import PythonWorker
from node_agent.scheduling.crash_history import CrashCount
from tests.support.broker import Faults, FaultyBroker
from tests.support.clock import Clock
from tests.support.waiting import BOUND, eventually

TASKS = QueueRef("memory", "tasks")
RESULTS = QueueRef("memory", "results")
INCARNATION = "abc123"
NO_FOLDER = Path("/nonexistent/files")
"""Where agents download no file."""


def config(**changes: Any) -> documents.AgentConfig:
    """Return an agent's configuration for the memory doubles."""
    base = documents.AgentConfig(
        pool="pool",
        task_queues=(documents.QueueAccess(TASKS, "Endpoint=sb://memory/"),),
        results_queues=(documents.QueueAccess(RESULTS, "Endpoint=sb://memory/"),),
        ctl=documents.ContainerAccess("memory://ctl", ""),
        out=documents.ContainerAccess("memory://out", ""),
        lock_duration=5.0,
        slots=1,
        idle_exit=None,
        heartbeat_interval=0.5,
        grace=1.0,
        drain_grace=5.0,
    )
    return replace(base, **changes)


def task(sequence: int, command: str = "ok", *args: Any, **changes: Any) -> wire.TaskItem:
    """Make a task as a client does."""
    base = wire.TaskItem(
        client="client",
        job="job",
        task_id=str(sequence),
        command=command,
        params=list(args),
        uid=wire.make_uid(INCARNATION, sequence),
        bundle="b" * 64,
    )
    return replace(base, **changes)


Behaviour = Callable[[Execution], Any]


@dataclass
class FakeSlot:
    """A slot whose tasks are coroutines of this process: `behaviours` by command, "ok" is there."""

    behaviours: dict[str, Behaviour]
    begun: list[str] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    cleaned: int = 0
    restored: int = 0
    intact: bool = True

    async def prepare(self, bundle: Bundle, files: Path) -> Place:
        return Place(bundle, files, files, [])

    def resolve(self, execution: Execution, place: Place) -> commands.RunProgram:
        """Return a program for every task, so that none needs the Python worker."""
        return commands.RunProgram((execution.command,))

    async def launch(self, execution: Execution, argv: Sequence[str], place: Place) -> Outcome:
        self.begun.append(execution.uid)
        try:
            outcome = self.behaviours[execution.command](execution)
            if asyncio.iscoroutine(outcome):
                outcome = await outcome
        except asyncio.CancelledError:
            self.killed.append(execution.uid)
            raise
        assert isinstance(outcome, Outcome)
        return outcome

    async def worker(self, place: Place, execution: Execution) -> PythonWorker:
        raise NotImplementedError

    def room(self, worker: PythonWorker) -> int:
        raise NotImplementedError

    def dispatch(
        self, worker: PythonWorker, executions: Sequence[Execution], start_by: float, room: int
    ) -> None:
        raise NotImplementedError

    async def run(self, worker: PythonWorker, execution: Execution, place: Place) -> Sequence[Outcome]:
        raise NotImplementedError

    def has(self, worker: PythonWorker) -> bool:
        raise NotImplementedError

    async def discard(self, worker: PythonWorker) -> None:
        raise NotImplementedError

    async def release(self, worker: PythonWorker) -> None:
        raise NotImplementedError

    def is_intact(self) -> bool:
        return self.intact

    async def restore(self) -> None:
        self.restored += 1
        self.intact = True

    def clean(self, outcome: Outcome | None = None) -> None:
        self.cleaned += 1

    async def aclose(self) -> None:
        pass


def succeed(execution: Execution) -> Outcome:
    return Outcome(Status.SUCCEEDED, b'"ok"', started_at=1.0, finished_at=1.001)


def behave(**behaviours: Behaviour) -> dict[str, Behaviour]:
    return {"ok": succeed, **behaviours}


class FakeBundles:
    """Every bundle is there, and empty."""

    @contextlib.asynccontextmanager
    async def use(self, bundle_hash: str) -> AsyncIterator[tuple[Bundle, Path]]:
        yield Bundle(()), Path()

    def distrust(self, bundle_hash: str) -> None:
        raise NotImplementedError


class FakeEnvironments:
    """Every environment is there, and empty."""

    @contextlib.asynccontextmanager
    async def use(self, bundle_hash: str) -> AsyncIterator[Path]:
        yield Path()


class FakeRunning:
    """Notes what runs."""

    def __init__(self) -> None:
        self.noted: list[tuple[int, tuple[str, ...]]] = []

    def begin(self, slot: int, uids: Sequence[str]) -> None:
        self.noted.append((slot, tuple(uids)))

    def end(self, slot: int) -> None:
        self.noted.append((slot, ()))


class FakeBegun:
    """What the node has begun of broadcasts."""

    def __init__(self) -> None:
        self.noted: dict[str, bytes] = {}

    def read(self, uid: str) -> bytes | None:
        return self.noted.get(uid)

    def begin(self, uid: str) -> None:
        self.noted[uid] = b""

    def ended(self, uid: str, result: bytes) -> None:
        self.noted[uid] = result


@dataclass
class World:
    """The services around an agent, and the client's side of them."""

    broker: MemoryBroker
    storage: MemoryStorage
    ctl: MemoryContainer
    out: MemoryContainer
    behaviours: dict[str, Behaviour]
    slots: list[FakeSlot] = field(default_factory=list)
    running: FakeRunning = field(default_factory=FakeRunning)
    same_node: bool = False
    """Whether each agent is of the node of the one before it, and has its record of settled messages."""
    settled: set[str] = field(default_factory=set)
    forgotten: list[str] = field(default_factory=list)
    begun: FakeBegun = field(default_factory=FakeBegun)
    """Of broadcasts, on the one node."""
    beside: list[FakeSlot] = field(default_factory=list)
    """The slots that were opened for them."""
    numbers: Any = field(default_factory=lambda: itertools.count(1))
    faults: Faults = field(default_factory=Faults)
    clock: Clock = field(default_factory=Clock)
    """The broker's time."""

    @classmethod
    async def make(cls, *, lock_duration: float = 5.0, **behaviours: Behaviour) -> World:
        clock = Clock()
        broker, storage = MemoryBroker(clock=clock), MemoryStorage()
        await broker.create_queue(QueueSpec("tasks", lock_duration=lock_duration))
        await broker.create_queue(QueueSpec("results", sessions=True))
        await storage.create_container("ctl")
        await storage.create_container("out")
        return cls(
            broker=broker,
            storage=storage,
            ctl=storage.container("ctl"),
            out=storage.container("out"),
            behaviours=behave(**behaviours),
            clock=clock,
        )

    def parts(self, crashes: dict[str, CrashCount] | None = None, **changes: Any) -> Parts:
        settings = config(**changes)
        self.slots = [FakeSlot(self.behaviours) for _ in range(settings.slots)]
        return Parts(
            config=settings,
            agent=f"agent{next(self.numbers)}",
            boot_id="boot",
            broker=cast("Broker", FaultyBroker(self.broker, self.faults)),
            ctl=self.ctl,
            out=self.out,
            bundles=FakeBundles(),
            environments=FakeEnvironments(),
            slots=self.slots,
            running=self.running,
            settled=self.settled if self.same_node else set(),
            crashes=crashes or {},
            forget_crashes=self.forgotten.append,
            events=EventBatcher(),
            broadcasts=BroadcastParts(self.begun, self._open_slot),
            files=FileCache(NO_FOLDER),
        )

    def _open_slot(self) -> FakeSlot:
        self.beside.append(FakeSlot(self.behaviours))
        return self.beside[-1]

    @contextlib.asynccontextmanager
    async def doomed(self, **changes: Any) -> AsyncIterator[Agent]:
        """Run an agent that is killed at the end of the block."""
        agent = Agent(self.parts(None, **changes))
        running = asyncio.create_task(agent.run())
        try:
            yield agent
        finally:
            running.cancel()
            await asyncio.wait([running])

    @contextlib.asynccontextmanager
    async def agent(
        self, crashes: dict[str, CrashCount] | None = None, **changes: Any
    ) -> AsyncIterator[Agent]:
        """Run an agent for the block, and drain it at the end."""
        agent = Agent(self.parts(crashes, **changes))
        running = asyncio.create_task(agent.run())
        try:
            yield agent
        finally:
            agent.drain(0.0)
            async with asyncio.timeout(BOUND):
                await running

    async def submit(self, *tasks: wire.TaskItem) -> None:
        """Send the tasks in one message."""
        sender = await self.broker.sender(TASKS)
        body = wire.join("tasks", [wire.encode(each) for each in tasks])
        await sender.send(OutgoingMessage(body, f"m{next(self.numbers)}"))

    async def results(self, count: int, mailbox: str = "job/client") -> list[wire.ResultItem]:
        """Receive the next results, in the order in which they come."""
        found: list[wire.ResultItem] = []
        async with asyncio.timeout(BOUND), await self.broker.mailbox(RESULTS, mailbox) as link:
            while len(found) < count:
                delivery = await link.receive(BOUND)
                assert delivery is not None
                found += [item for item in wire.decode(delivery.body) if isinstance(item, wire.ResultItem)]
                await link.complete(delivery)
        return found

    def lapse(self, seconds: float = 60.0) -> None:
        """Let time pass for the broker: locks run out."""
        self.clock.ahead += seconds
        self.broker.tick()

    async def empty(self) -> None:
        """Wait until the task queue is empty."""
        await self.until(lambda: self._is_empty())

    async def _is_empty(self) -> bool:
        figures = await self.broker.figures("tasks")
        return not figures.active and not figures.scheduled

    async def until(self, condition: Callable[[], Awaitable[bool] | bool]) -> None:
        """Wait until the condition holds."""
        await eventually(condition, pause=0.005)

    async def heartbeats(self) -> list[documents.Heartbeat]:
        return [
            documents.Heartbeat.decode((await self.out.get(info.name)).data)
            async for info in self.out.list("agents/")
        ]
