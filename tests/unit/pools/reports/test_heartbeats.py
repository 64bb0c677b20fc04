"""How many agents live, and how many slots they have, whatever their number."""

from __future__ import annotations

from typing import Any

from batchflow.pools.reports.heartbeats import read_heartbeats, sample_heartbeats
from batchflow.protocol.documents import Heartbeat, Running
from batchflow.protocol.layout import heartbeat_blob
from batchflow.testing import MemoryContainer, MemoryStorage
from tests.support.clock import Clock


class Counting(MemoryContainer):
    """Counts what is read."""

    reads = 0

    async def get(self, name: str) -> Any:
        self.reads += 1
        return await super().get(name)


async def container() -> tuple[Counting, Clock]:
    clock = Clock()
    storage = MemoryStorage(clock=clock)
    await storage.create_container("out")
    return Counting(storage, "out"), clock


async def beat(out: MemoryContainer, number: int, slots: int = 2, **fields: Any) -> None:
    plain: dict[str, Any] = {"state": "ready", "interval": 5.0, **fields}
    document = Heartbeat(
        f"a{number}", f"n{number}", "h", "b", 1, slots=slots, started_at=0.0, beat_at=0.0, **plain
    )
    await out.put(heartbeat_blob(f"a{number}"), document.encode())


async def test_all_heartbeats_of_a_small_pool_are_read() -> None:
    """And those that are gone, or go, do not count."""
    out, clock = await container()
    await beat(out, 1)
    clock.ahead += 60.0
    await beat(out, 2)
    await beat(out, 3, state="exiting")
    await beat(out, 4, slots=3)
    sample = await sample_heartbeats(out)
    assert {each.agent for each in sample.beats} == {"a2", "a4"}
    assert (sample.alive, sample.open_slots) == (2, 5)
    assert {each.agent for each in await read_heartbeats(out)} == {"a2", "a4"}


async def test_sample_of_a_large_pool_is_extrapolated() -> None:
    """They stand for the others; documents of agents that are long gone mislead nobody."""
    out, clock = await container()
    for number in range(300):
        await beat(out, number)
    clock.ahead += 600.0
    for number in range(300, 500):
        await beat(out, number, slots=4, running=(Running("i:0", "0", "c", "j", "x.py", 0.0),))
    out.reads = 0
    sample = await sample_heartbeats(out, 20)
    assert out.reads == 20
    assert (sample.alive, sample.open_slots, sample.slots, sample.busy) == (200, 800, 800, 200)


async def test_sample_of_a_pool_without_agents_is_empty() -> None:
    """No slots."""
    out, clock = await container()
    await beat(out, 1)
    clock.ahead += 60.0
    sample = await sample_heartbeats(out)
    assert (sample.beats, sample.alive, sample.open_slots) == ([], 0, 0)
