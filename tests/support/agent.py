"""An agent without an agent's code: it takes tasks and sends the results that a test tells it to.

Tests of the client use it. There are four other ways to have an agent, each for what this one cannot do:

- `tests.support.agent_world` runs the real agent on memory ports. Tests of the agent use it.
- `tests.model.agents` has the real scheduler, one step at a time, because the model chooses which process
  takes the next step.
- `tests.simulations.exact` has the real scheduler and gives each step its time, because the simulation
  measures how long everything takes.
- `tests.simulations.fleet` counts packs, because ten thousand real schedulers take too long.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol

from batchflow.model import Status
from batchflow.pools.runtime import PoolRuntime
from batchflow.ports.broker import OutgoingMessage, Receiver, Sender
from batchflow.protocol import wire
from batchflow.protocol.documents import Heartbeat
from batchflow.protocol.layout import heartbeat_blob
from batchflow.protocol.wire import EventItem, Reference, ResultItem, TaskItem
from batchflow.support.version import own_version
from tests.support.services import Doubles
from tests.support.waiting import BOUND


class HasRuntime(Protocol):
    """A pool, or what a session shares with its parts."""

    @property
    def runtime(self) -> PoolRuntime: ...


class Agent:
    """An agent that takes tasks and answers them when, and as, a test says."""

    def __init__(self, doubles: Doubles, pool: HasRuntime, name: str = "agent-1") -> None:
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
        """Write a heartbeat."""
        now = self.clock()
        versions = {"batchflow": own_version()}
        plain: dict[str, Any] = {"state": "ready", "slots": 2, "interval": 60.0, "versions": versions}
        plain |= {"node": "node-1", "host": "host-1", "boot_id": "boot", "pid": 1}
        beat = Heartbeat(self.name, started_at=now, beat_at=now, **{**plain, **fields})
        await self._out.put(heartbeat_blob(self.name), beat.encode())

    async def take_message(self, max_wait: float = BOUND) -> list[TaskItem]:
        """Complete the next message and return its tasks; none when none came in time."""
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
        """Take messages until there are so many tasks, at least."""
        items: list[TaskItem] = []
        while len(items) < number:
            more = await self.take_message()
            assert more, f"only {len(items)} of {number} tasks came"
            items += more
        return items

    async def answer(self, *items: TaskItem, value: Any = None, **fields: Any) -> list[ResultItem]:
        """Send one message with a result for each task. Without `value`, a result is the task's arguments."""
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
        """Store a result's value in a blob."""
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
    """Return the agent's result of a task."""
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
