"""How long nodes take to boot, as clients have seen it: kept for the account, by the kind of node."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from batchflow.errors import BlobNotFound, ProtocolError
from batchflow.pools.scaling.values import Estimate, learn
from batchflow.protocol import layout
from batchflow.protocol.documents import Document
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchflow.ports.compute import BatchTaskInfo, NodeInfo, PoolInfo
    from batchflow.ports.storage import Container

_EXACTNESS: Final = 2.0
"""Seconds by which Batch's times of a task and of its node may differ."""


@frozen
class BootHistory(Document):
    """The boots of one kind of node that were seen in an account."""

    seconds: Estimate | None = None
    """From asking for an agent to its start on a new node; None: no boot was seen."""
    slots: int = 0
    """The slots of such a node; 0: unknown."""
    refused: int | None = None
    """The nodes that were there when Batch allocated no more for want of quota; None: it always did."""


def kind_of(info: PoolInfo) -> str:
    """Return the kind of a pool's nodes, as a part of a blob's name: its VM size, image and start task."""
    image = info.image
    parts = [info.vm_size, *(() if image is None else (image.offer, image.sku))]
    if info.start_command is not None:
        parts.append(f"{len(info.start_command)}")
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower())[:100]


def boots_of(tasks: Iterable[BatchTaskInfo], nodes: Iterable[NodeInfo]) -> dict[str, float]:
    """Return the seconds that each agent waited whose node was allocated for it, by its Batch task."""
    allocated = {node.id: node.allocated_at for node in nodes}
    found = {}
    for task in tasks:
        there = allocated.get(task.node or "")
        if task.created_at is None or task.started_at is None or there is None or task.retries:
            continue
        if there >= task.created_at - _EXACTNESS:
            found[task.id] = max(0.0, task.started_at - task.created_at)
    return found


class BootRecords:
    """Reads and writes the boots seen. What cannot be read is unknown."""

    def __init__(self) -> None:
        self._histories: dict[str, BootHistory] = {}
        self._counted: set[str] = set()

    async def history(self, index: Container, info: PoolInfo) -> BootHistory:
        """Return what is known of nodes like those of this pool; it is read once."""
        kind = kind_of(info)
        if kind not in self._histories:
            self._histories[kind] = await read_history(index, info)
        return self._histories[kind]

    async def note(self, index: Container, info: PoolInfo, boots: dict[str, float], slots: int) -> None:
        """Add the boots that are new."""
        new = {task: seconds for task, seconds in boots.items() if task not in self._counted}
        if not new:
            return
        self._counted |= new.keys()
        history = await read_history(index, info)
        seconds = history.seconds
        for value in new.values():
            seconds = learn(seconds, value)
        await self._write(index, info, BootHistory(seconds, slots or history.slots, history.refused))

    async def note_refusal(self, index: Container, info: PoolInfo, there: int | None) -> None:
        """Note at how many nodes Batch refused more of them; None: it does not refuse any more."""
        history = await self.history(index, info)
        if history.refused != there:
            await self._write(index, info, BootHistory(history.seconds, history.slots, there))

    async def _write(self, index: Container, info: PoolInfo, history: BootHistory) -> None:
        self._histories[kind_of(info)] = history
        await index.put(layout.boots_blob(kind_of(info)), history.encode())


async def read_history(index: Container, info: PoolInfo) -> BootHistory:
    """Return what clients have seen of nodes like those of this pool."""
    try:
        return BootHistory.decode((await index.get(layout.boots_blob(kind_of(info)))).data)
    except (BlobNotFound, ProtocolError):
        return BootHistory()
