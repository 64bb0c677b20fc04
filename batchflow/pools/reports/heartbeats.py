"""The heartbeats of a pool's agents, as clients read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio

from batchflow.errors import BlobNotFound, ProtocolError
from batchflow.protocol import layout
from batchflow.protocol.documents import Heartbeat, gone_after
from batchflow.protocol.packing import open_slots
from batchflow.support.frozen import frozen
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from batchflow.ports.storage import BlobInfo, Container
_SAMPLE: Final = 64
"""Heartbeats that a session reads at a look. It looks every five seconds, so it cannot read a thousand."""
_READS: Final = 16
"""Documents that are read at the same time."""


async def read_heartbeats(out: Container, fresh_only: bool = True) -> list[Heartbeat]:
    """Read the last heartbeats of the pool's agents; without `fresh_only`, also of those that are gone."""
    infos = [info async for info in out.list(layout.HEARTBEATS)]
    found = await _read_beats(out, infos)
    return [beat for beat, info in found if not fresh_only or is_fresh(beat, info.age)]


@frozen
class Sample:
    """The heartbeats of some of the living agents, and how many of these there are."""

    beats: list[Heartbeat]
    alive: int

    @property
    def open_slots(self) -> int:
        """The free slots for short tasks over all agents, extrapolated from the sample."""
        return self._over_all(open_slots(self.beats))

    @property
    def slots(self) -> int:
        """The slots of all agents, extrapolated."""
        return self._over_all(sum(beat.slots for beat in self.beats))

    @property
    def busy(self) -> int:
        """The slots of all agents that run a task, extrapolated."""
        return self._over_all(sum(len(beat.running) for beat in self.beats))

    def _over_all(self, number: int) -> int:
        return round(number * self.alive / len(self.beats)) if self.beats else 0


async def sample_heartbeats(out: Container, most: int = _SAMPLE) -> Sample:
    """Read at most so many heartbeats, for a look every few seconds."""
    infos = sorted([info async for info in out.list(layout.HEARTBEATS)], key=lambda info: info.age)
    found = await _read_beats(out, infos[:most])
    beats = [beat for beat, info in found if is_fresh(beat, info.age)]
    limit = max((gone_after(beat.interval) for beat in beats), default=0.0)
    unread = sum(info.age < limit for info in infos[most:])
    return Sample(beats, len(beats) + unread)


async def _read_beats(out: Container, infos: list[BlobInfo]) -> list[tuple[Heartbeat, BlobInfo]]:
    found: dict[str, Heartbeat] = {}
    limiter = anyio.CapacityLimiter(_READS)

    async def read(name: str) -> None:
        async with limiter:
            try:
                found[name] = Heartbeat.decode((await out.get(name)).data)
            except (BlobNotFound, ProtocolError):
                return  # gone meanwhile, or of another version: it does not count as an agent

    async with task_group() as group:
        for info in infos:
            group.start_soon(read, info.name)
    return [(found[info.name], info) for info in infos if info.name in found]


def is_fresh(beat: Heartbeat, age: float) -> bool:
    """Tell whether the agent lives, by its heartbeat. `age`: seconds, by the storage service's clock."""
    return beat.state != "exiting" and age < gone_after(beat.interval)
