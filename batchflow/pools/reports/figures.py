"""What a pool looks like at one moment, for views that cannot ask its services: nodes, slots, queue, cost."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from batchflow.errors import BatchflowError
from batchflow.model import Node
from batchflow.pools.reports.heartbeats import read_heartbeats
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from batchflow.costs.cost import Cost
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.ports.compute import NodeInfo
    from batchflow.protocol.documents import Heartbeat

_MOST_POOLS: Final = 20
"""Pools whose figures a client's view shows."""


@frozen
class PoolFigures:
    """Figures of a pool. None stands for what this client may not ask."""

    nodes: str | None
    """Machines by their state, as Batch says."""
    agents: str
    slots: int
    busy: int
    queued: int | None
    """Messages that wait, each with one or more tasks."""
    dead: int | None
    cost: str | None

    def facts(self) -> list[tuple[str, object]]:
        """Return what a view shows."""
        dead = f", {self.dead:,} dead letters" if self.dead else ""
        return [
            ("nodes", self.nodes),
            ("agents", self.agents),
            ("slots", f"{self.busy:,} of {self.slots:,} busy" if self.slots else "none yet"),
            ("queue", None if self.queued is None else f"{self.queued:,} messages{dead}"),
            ("cost", self.cost),
        ]


async def look(runtime: PoolRuntime, cost: Callable[[], Awaitable[Cost]]) -> PoolFigures:
    """Take a pool's figures, and keep them for its views. Raises `StorageError`. Safe to cancel."""
    beats = await read_heartbeats(runtime.out)
    states: Counter[str] = Counter(beat.state for beat in beats)
    nodes: str | None = None
    queued: int | None = None
    dead: int | None = None
    try:
        found = Counter(node.state for node in await runtime.connections.compute.nodes(runtime.pool_id))
        nodes = _counted(found) or "none"
        queues = runtime.manifest.task_queues
        figures = [await runtime.connections.admin_of(queue).figures(queue.entity) for queue in queues]
        queued, dead = sum(each.active for each in figures), sum(each.dead for each in figures)
    except BatchflowError:
        nodes = nodes or None  # a client of one pool alone has no right to ask
    try:
        spent: str | None = (await cost()).short
    except BatchflowError:
        spent = None
    seen = PoolFigures(
        nodes=nodes,
        agents=_counted(states) or "none",
        slots=sum(beat.slots for beat in beats),
        busy=sum(len(beat.running) for beat in beats),
        queued=queued,
        dead=dead,
        cost=spent,
    )
    runtime.sessions.figures[runtime.pool_id] = seen
    return seen


def _counted(states: Counter[str]) -> str:
    return ", ".join(f"{number:,} {state}" for state, number in sorted(states.items()))


async def look_at_all(
    figures: dict[str, PoolFigures], pools: Sequence[tuple[PoolRuntime, Callable[[], Awaitable[Cost]]]]
) -> None:
    """Take the figures of the first pools of a client, and forget those of others. Raises as `look` does."""
    figures.clear()
    for runtime, cost in pools[:_MOST_POOLS]:
        await look(runtime, cost)


def node_of(info: NodeInfo, beat: Heartbeat | None) -> Node:
    """Return a machine as Batch and its agent's heartbeat describe it."""
    if beat is None:
        return Node(info.id, info.state, dedicated=info.dedicated)
    return Node(
        info.id,
        info.state,
        host=beat.host,
        dedicated=info.dedicated,
        slots=beat.slots,
        running=len(beat.running),
        agent=beat.state,
    )
