"""What a task costs inside the agent, and whether it grows: ``python -m tests.benchmarks.bench_agent``.

The broker is a stub that hands out messages and takes results at once, so what is measured is the agent
alone: delivery in, scheduling, a warm Python child, result out.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchflow.ports.broker import Delivery, OutgoingMessage, QueueRef
from batchflow.protocol import wire
from batchflow.protocol.bundle import Bundle, BundleFile
from batchflow.testing import MemoryContainer, MemoryStorage
from node_agent.agent import Agent
from node_agent.startup import assembly
from tests.support.agent_world import config, task

NO_OP = b"def do_action(engine, args):\n    return args\n"
RSS_LIMIT = 80.0
GROWTH_LIMIT = 5.0
CPU_LIMIT = 200.0


@dataclass
class StubBroker:
    """Hands out `total` tasks, `pack` to a message, and counts the results."""

    bundle: str
    total: int
    pack: int
    bodies: list[bytes] = field(default_factory=list)
    sent: int = 0
    answered: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> StubBroker:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def aclose(self) -> None:
        pass

    async def sender(self, queue: QueueRef) -> Any:
        return self

    async def receiver(self, queue: QueueRef, *, prefetch: int = 0, dead_letters: bool = False) -> Any:
        return self

    async def receive(self, max_wait: float) -> Delivery | None:
        if self.sent >= self.total:
            await asyncio.sleep(max_wait)
            return None
        await asyncio.sleep(0)
        body = self.bodies[self.sent // self.pack % len(self.bodies)]
        self.sent += self.pack
        return Delivery(body, "m", self.sent, 0, "token", time.time())

    def __post_init__(self) -> None:
        """Messages are made before anything is timed, and handed out again and again."""
        for first in range(0, 1000, self.pack):
            items = [task(first + n, "no_op.py", n, bundle=self.bundle) for n in range(self.pack)]
            self.bodies.append(wire.join("tasks", map(wire.encode, items)))

    async def send(self, *messages: OutgoingMessage) -> None:
        await asyncio.sleep(0)
        self.answered += sum(message.body.count(b'"uid"') for message in messages)
        if self.answered >= self.total:
            self.over.set()

    async def complete(self, delivery: Delivery) -> None:
        await asyncio.sleep(0)

    async def renew(self, delivery: Delivery) -> None:
        pass


@dataclass(frozen=True)
class Measured:
    """Of one run."""

    cpu: float
    """Microseconds a task, of the agent's process without its children."""
    rate: float
    """Tasks a second."""


async def measure(tasks: int, pack: int, directory: Path, rss: list[float] | None = None) -> Measured:
    """Run so many tasks through an agent with one slot."""
    storage = MemoryStorage()
    for name in ("ctl", "out"):
        await storage.create_container(name)
    ctl = storage.container("ctl")
    bundle = await _bundle(ctl)
    broker = StubBroker(bundle, tasks, pack)

    adaptors = assembly.Adaptors(broker, ctl, storage.container("out"))  # type: ignore[arg-type]
    with ExitStack() as stack:
        agent = assembly.agent(config(slots=1), directory, adaptors, stack)
        return await _timed(agent, broker, rss)


async def _timed(agent: Agent, broker: StubBroker, rss: list[float] | None) -> Measured:
    running = asyncio.create_task(agent.run())
    while broker.answered < min(100, broker.total // 2):  # noqa: ASYNC110 - the stub stays simple
        await asyncio.sleep(0.01)
    first, cpu, began = broker.answered, time.process_time(), time.perf_counter()
    while not broker.over.is_set():
        await asyncio.wait([asyncio.ensure_future(broker.over.wait())], timeout=0.5)
        if rss is not None:
            rss.append(resident())
    done = broker.answered - first
    used, took = time.process_time() - cpu, time.perf_counter() - began
    agent.drain(0.0)
    await running
    return Measured(used / done * 1e6, done / took)


async def _bundle(ctl: MemoryContainer) -> str:
    file = BundleFile("no_op.py", hashlib.sha256(NO_OP).hexdigest(), len(NO_OP))
    bundle = Bundle.of([file])
    await ctl.put(file.blob, NO_OP)
    await ctl.put(bundle.blob, bundle.document)
    return bundle.hash


def resident() -> float:
    """Megabytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1024**2


def rows(tasks: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for pack in (1, 20):
            found = asyncio.run(measure(min(tasks, 5000), pack, root / str(pack)))
            yield f"CPU of a no-op, {pack:2} a message: {found.cpu:6.1f} us, {found.rate:.0f} tasks/s"
        yield f"    (one a message: at most {CPU_LIMIT:.0f} us)"
        rss: list[float] = []
        asyncio.run(measure(tasks, 20, root / "rss", rss))
        early = rss[max(1, len(rss) // 10)]
        growth = (rss[-1] / early - 1) * 100
        yield f"RSS after {tasks // 10} and {tasks} tasks: {early:.1f} and {rss[-1]:.1f} MB, {growth:+.1f} %"
        yield f"    (at most {RSS_LIMIT:.0f} MB with the SDKs, {GROWTH_LIMIT:.0f} % of growth)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    for row in rows(parser.parse_args().tasks):
        print(row)


if __name__ == "__main__":
    main()
