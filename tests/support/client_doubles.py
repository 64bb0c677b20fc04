"""A client on in-memory doubles, and an agent that does what a test tells it to."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from batchflow.errors import BrokerError, PoolError, PoolExists, PoolNotFound, StorageError
from batchflow.model import Image, Status
from batchflow.pools.connections import Connections
from batchflow.ports.broker import Delivery, OutgoingMessage, QueueRef, Receiver, Sender
from batchflow.ports.compute import BatchTask, BatchTaskInfo, NodeInfo, PoolDocument, PoolInfo, SupportedImage
from batchflow.ports.storage import Blob
from batchflow.protocol import wire
from batchflow.protocol.documents import Heartbeat
from batchflow.protocol.layout import heartbeat_blob
from batchflow.protocol.wire import EventItem, Reference, ResultItem, TaskItem
from batchflow.session import Session, SessionPool
from batchflow.settings import (
    AgentSettings,
    BatchSettings,
    ServiceBusSettings,
    SessionSettings,
    Settings,
    StorageSettings,
)
from batchflow.support.version import own_version
from batchflow.testing import MemoryBroker, MemoryContainer, MemoryStorage
from tests.support.clock import Clock
from tests.support.waiting import BOUND, eventually


async def until_empty(session: Session, but: int = 0) -> None:
    """Return when all of the session's messages, but so many, were completed."""
    broker, (queue,) = session.pool.runtime.connections.admin, session.pool.runtime.manifest.results_queues

    async def is_empty() -> bool:
        return (await broker.figures(queue.entity)).active <= but

    await eventually(is_empty)


def settings(**session: Any) -> Settings:
    """Settings as of a connected client, with short times."""
    return Settings(
        batch=BatchSettings("account", "key", "https://account.example"),
        storage=StorageSettings("storage"),
        servicebus=ServiceBusSettings("bus"),
        agent=AgentSettings(python="python3", heartbeat_interval=0.1),
        session=SessionSettings(**{"close_timeout": 2.0, "presence_interval": 0.2, **session}),
    )


class ScriptedSender:
    """A sender that notes what it is given, waits at a gate, and fails as it is told."""

    def __init__(self, broker: ScriptedBroker, sender: Sender) -> None:
        self._broker = broker
        self._sender = sender

    async def send(self, *messages: OutgoingMessage) -> None:
        broker = self._broker
        broker.tried += messages
        await broker.gate.wait()
        fault = broker.faults.popleft() if broker.faults else None
        if fault is None or broker.accepts_before_failing:
            await self._sender.send(*messages)
        if fault is not None:
            raise fault

    async def schedule(self, message: OutgoingMessage, at: float) -> None:
        await self._sender.schedule(message, at)

    async def aclose(self) -> None:
        await self._sender.aclose()


class ScriptedBroker(MemoryBroker):
    """The client's side of the broker, with faults."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.clock = clock
        self.tried: list[OutgoingMessage] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.faults: deque[BrokerError | None] = deque()
        self.accepts_before_failing = False
        self.completed: list[Delivery] = []

    async def sender(self, queue: QueueRef) -> Any:
        return ScriptedSender(self, await super().sender(queue))

    async def plain_sender(self, queue: QueueRef) -> Sender:
        return await super().sender(queue)

    def advance(self, seconds: float) -> None:
        """Let so much time pass for locks."""
        self.clock.ahead += seconds
        self.tick()


class ScriptedContainer(MemoryContainer):
    """A container that notes what is read and written and fails as it is told."""

    def __init__(self, storage: ScriptedStorage, name: str) -> None:
        super().__init__(storage, name)
        self._scripted = storage

    async def get(self, name: str) -> Blob:
        await self._scripted.pass_by("get", name)
        return await super().get(name)

    async def put(self, name: str, data: bytes, *, if_match: str | None = None, create: bool = False) -> str:
        await self._scripted.pass_by("put", name)
        return await super().put(name, data, if_match=if_match, create=create)

    async def delete(self, name: str, *, if_match: str | None = None) -> bool:
        await self._scripted.pass_by("delete", name)
        return await super().delete(name, if_match=if_match)


class ScriptedStorage(MemoryStorage):
    """Storage with faults, by the beginning of a blob's name."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.calls: list[tuple[str, str]] = []
        self.faults: dict[tuple[str, str], list[StorageError]] = {}
        self.gates: dict[tuple[str, str], asyncio.Event] = {}

    async def pass_by(self, verb: str, name: str) -> None:
        self.calls.append((verb, name))
        for (which, prefix), gate in self.gates.items():
            if which == verb and name.startswith(prefix):
                await gate.wait()
        for (which, prefix), faults in self.faults.items():
            if which == verb and name.startswith(prefix) and faults:
                raise faults.pop(0)

    def container(self, name: str) -> ScriptedContainer:
        return ScriptedContainer(self, name)

    async def write(self, name: str, data: bytes, container: str) -> None:
        """Past all faults."""
        await MemoryContainer(self, container).put(name, data)

    def names(self, prefix: str) -> list[str]:
        """Of all blobs, in whatever container, that begin so."""
        return sorted(n for blobs in self.content.values() for n in blobs if n.startswith(prefix))


class MemoryCompute:
    """Batch in memory: pools that are all there at once, tasks that never end by themselves."""

    def __init__(self) -> None:
        self.known: dict[str, PoolInfo] = {}
        self.jobs: dict[str, list[BatchTask]] = {}
        self.node_infos: list[NodeInfo] = []
        self.fault: PoolError | None = None
        self.containers = False
        """Whether nodes can run them."""

    def _check(self) -> None:
        if self.fault is not None:
            raise self.fault

    async def create_pool(self, document: PoolDocument) -> None:
        self._check()
        if document.id.lower() in self.known:
            raise PoolExists(f"pool {document.id} exists")
        self.known[document.id.lower()] = PoolInfo(
            document.id, "active", "steady", document.vm_size, document.nodes, document.nodes,
            document.spot, document.spot, document.task_slots, document.metadata,
        )  # fmt: skip

    async def pool(self, pool_id: str) -> PoolInfo:
        self._check()
        try:
            return self.known[pool_id.lower()]
        except KeyError:
            raise PoolNotFound(f"there is no pool {pool_id}") from None

    async def pools(self) -> AsyncIterator[PoolInfo]:
        for info in self.known.values():
            yield info

    async def images(self) -> list[SupportedImage]:
        image = Image()
        able = self.containers
        return [
            SupportedImage(
                image.publisher, image.offer, image.sku, "batch.node.ubuntu 24.04", containers=able
            )
        ]

    async def resize_pool(self, pool_id: str, nodes: int, spot: int) -> None:
        info = await self.pool(pool_id)
        self.known[pool_id.lower()] = replace(info, nodes=nodes, wanted=nodes, spot=spot, spot_wanted=spot)

    async def remove_nodes(self, pool_id: str, node_ids: Sequence[str]) -> None:
        info = await self.pool(pool_id)
        self.node_infos = [node for node in self.node_infos if node.id not in node_ids]
        left = info.wanted - len(node_ids)
        self.known[pool_id.lower()] = replace(info, nodes=left, wanted=left)

    async def reboot_node(self, pool_id: str, node_id: str) -> None:
        await self.pool(pool_id)

    async def node_output(self, pool_id: str, node_id: str, path: str, tail: int = 4096) -> str:
        return ""

    async def change_start_task(self, document: PoolDocument) -> None:
        info = await self.pool(document.id)
        self.known[document.id.lower()] = replace(info, start_command=document.start_command)

    async def delete_pool(self, pool_id: str) -> bool:
        return self.known.pop(pool_id.lower(), None) is not None

    async def nodes(self, pool_id: str) -> list[NodeInfo]:
        await self.pool(pool_id)
        return self.node_infos

    async def create_job(self, job_id: str, pool_id: str) -> bool:
        self._check()
        made = job_id not in self.jobs
        self.jobs.setdefault(job_id, [])
        return made

    async def add_tasks(self, job_id: str, tasks: Sequence[BatchTask]) -> None:
        self.jobs[job_id] += tasks

    async def end_job_when_idle(self, job_id: str) -> None:
        assert job_id in self.jobs

    async def tasks(self, job_id: str) -> list[BatchTaskInfo]:
        self._check()
        return [BatchTaskInfo(task.id, "running") for task in self.jobs.get(job_id, [])]

    async def delete_task(self, job_id: str, task_id: str) -> bool:
        before = self.jobs.get(job_id, [])
        self.jobs[job_id] = [task for task in before if task.id != task_id]
        return len(before) != len(self.jobs[job_id])

    async def task_output(self, job_id: str, task_id: str, name: str, tail: int = 4096) -> str:
        return ""

    async def delete_job(self, job_id: str) -> bool:
        return self.jobs.pop(job_id, None) is not None

    async def aclose(self) -> None:
        pass


class Doubles:
    """The three services."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.broker = ScriptedBroker(self.clock)
        self.storage = ScriptedStorage(self.clock)
        self.compute = MemoryCompute()

    @property
    def services(self) -> Connections:
        return Connections(self.broker, self.broker, self.storage, self.compute)  # type: ignore[arg-type]


class Agent:
    """Takes the tasks of a pool and answers them when, and as, a test says."""

    def __init__(self, doubles: Doubles, pool: SessionPool, name: str = "agent-1") -> None:
        self._broker = doubles.broker
        self._manifest = pool.runtime.manifest
        self._out = doubles.storage.container(pool.runtime.manifest.out)
        self._receiver: Receiver | None = None
        self._sender: Sender | None = None
        self._numbers = itertools.count()
        self.name = name
        self.clock = doubles.clock
        self.messages: list[list[TaskItem]] = []
        """What came, message by message."""

    async def beat(self, **fields: Any) -> None:
        """A sign of life."""
        now = self.clock()
        versions = {"batchflow": own_version()}
        plain: dict[str, Any] = {"state": "ready", "slots": 2, "interval": 60.0, "versions": versions}
        plain |= {"node": "node-1", "host": "host-1", "boot_id": "boot", "pid": 1}
        beat = Heartbeat(self.name, started_at=now, beat_at=now, **{**plain, **fields})
        await self._out.put(heartbeat_blob(self.name), beat.encode())

    async def take_message(self, max_wait: float = BOUND) -> list[TaskItem]:
        """The tasks of the next message, which is completed; none when none came in time."""
        if self._receiver is None:
            self._receiver = await self._broker.receiver(self._manifest.task_queues[0])
        delivery = await self._receiver.receive(max_wait)
        if delivery is None:
            return []
        items = [item for item in wire.decode(delivery.body) if isinstance(item, TaskItem)]
        self.messages.append(items)
        await self._receiver.complete(delivery)
        return items

    async def take(self, number: int = 1) -> list[TaskItem]:
        """So many tasks, at least."""
        items: list[TaskItem] = []
        while len(items) < number:
            more = await self.take_message()
            assert more, f"only {len(items)} of {number} tasks came"
            items += more
        return items

    async def answer(self, *items: TaskItem, value: Any = None, **fields: Any) -> list[ResultItem]:
        """One message with a result for each. Without `value`: its arguments."""
        results = [result_of(item, value, **fields) for item in items]
        await self.post(results)
        return results

    async def post(self, results: Iterable[ResultItem] | Iterable[EventItem], mailbox: str = "") -> None:
        items: list[ResultItem | EventItem] = list(results)
        kind: wire.PackType = "events" if isinstance(items[0], EventItem) else "results"
        if isinstance(items[0], ResultItem):
            mailbox = wire.mailbox_id(items[0].job, items[0].client)
        await self.post_bytes(wire.join(kind, map(wire.encode, items)), mailbox)

    async def post_bytes(self, body: bytes, mailbox: str) -> None:
        if self._sender is None:
            self._sender = await self._broker.plain_sender(self._manifest.results_queues[0])
        message_id = f"{self.name}-{next(self._numbers)}"
        await self._sender.send(OutgoingMessage(body, message_id, session_id=mailbox))

    async def store(self, name: str, data: bytes) -> Reference:
        """A result's value in a blob."""
        await self._out.put(name, data)
        return Reference(name, len(data))

    async def serve(self, work: Callable[[TaskItem], ResultItem] | None = None) -> None:
        """Answer every task: with its arguments, or with what `work` makes of it."""
        while True:
            for item in await self.take_message(60.0):
                await self.post([result_of(item) if work is None else work(item)])


def argument_of(item: TaskItem) -> Any:
    """Return the first argument of a task that carries its arguments itself."""
    assert isinstance(item.params, list)
    return item.params[0]


def result_of(item: TaskItem, value: Any = None, **fields: Any) -> ResultItem:
    """The agent's result of a task."""
    plain: dict[str, Any] = {
        "uid": item.uid,
        "client": item.client,
        "job": item.job,
        "task_id": item.task_id,
        "command": item.command,
        "status": Status.SUCCEEDED,
        "host": "host-1",
        "value": value if value is not None else item.params if isinstance(item.params, list) else "large",
        "error": None,
        "tag": item.tag,
        "submitted_at": item.submitted_at,
        "started_at": 100.0,
        "finished_at": 100.001,
    }
    return ResultItem(**{**plain, **fields})


def failure_of(item: TaskItem, error: str = "it broke", kind: str = "TaskFailed") -> ResultItem:
    return replace(result_of(item), status=Status.FAILED, value=None, error=error, kind=kind)
