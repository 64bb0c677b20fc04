"""Messages for tests, and the memory broker with faults, as a client and as an agent see it.

The two sides differ in what a test says. The client's is a list of errors for the sends, in their order. The
agent's is a function before or after each kind of operation, because a test ends the agent at that point.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from batchflow.errors import BrokerError
from batchflow.ports.broker import Delivery, Mailbox, OutgoingMessage, QueueRef, Receiver, Sender
from batchflow.testing import MemoryBroker
from tests.support.clock import Clock

ENOUGH = 20.0
"""Seconds within which a message that is on its way arrives."""


def message(name: str, **options: object) -> OutgoingMessage:
    """Make a message whose body and id are that name."""
    return OutgoingMessage(name.encode(), name, **options)  # type: ignore[arg-type]


async def next_of(link: Receiver | Mailbox) -> Delivery:
    """Receive the next message, which must come."""
    delivery = await link.receive(ENOUGH)
    assert delivery is not None
    return delivery


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


Fault = Callable[[], Awaitable[None]]


@dataclass
class Faults:
    """What happens before or after an operation on a link ("send tasks", "complete", ...)."""

    before: dict[str, Fault] = field(default_factory=dict)
    after: dict[str, Fault] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    async def around(self, operation: str, work: Awaitable[Any]) -> Any:
        self.calls.append(operation)
        try:
            if fault := self.before.get(operation):
                await fault()
        except BaseException:
            asyncio.ensure_future(work).cancel() if asyncio.iscoroutine(work) else None
            raise
        result = await work
        if fault := self.after.get(operation):
            await fault()
        return result


class FaultyLink:
    """A link whose operations go through `Faults`."""

    def __init__(self, link: Any, queue: str, faults: Faults) -> None:
        self._link = link
        self._queue = queue
        self._faults = faults
        self.sent: list[OutgoingMessage] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._link, name)
        operation = f"{name} {self._queue}" if name in ("send", "schedule") else name

        async def call(*arguments: Any) -> Any:
            return await self._faults.around(operation, method(*arguments))

        return call


class FaultyBroker:
    """A broker for an agent, whose links fail as `faults` says."""

    def __init__(self, broker: MemoryBroker, faults: Faults) -> None:
        self._broker = broker
        self._faults = faults

    async def sender(self, queue: QueueRef) -> Any:
        link = await self._faults.around("open sender", self._broker.sender(queue))
        return FaultyLink(link, queue.entity, self._faults)

    async def receiver(self, queue: QueueRef, *, prefetch: int = 0, dead_letters: bool = False) -> Any:
        work = self._broker.receiver(queue, dead_letters=dead_letters)
        link = await self._faults.around("open receiver", work)
        return link if dead_letters else FaultyLink(link, queue.entity, self._faults)

    async def aclose(self) -> None:
        pass
