"""Takes the figures of pools, which their views show: nodes, slots, queue, cost."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from batchflow.errors import BatchflowError
from batchflow.pools.reports.figures import PoolFigures
from batchflow.pools.reports.heartbeats import read_heartbeats
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from batchflow.costs.cost import Cost
    from batchflow.pools.runtime import PoolRuntime
    from batchflow.protocol.documents import Heartbeat

_MOST_POOLS: Final = 20
"""Pools whose figures a client's view shows."""


async def look(runtime: PoolRuntime, cost: Callable[[], Awaitable[Cost]]) -> PoolFigures:
    """Take a pool's figures, and keep them for its views. Raises `StorageError`. Safe to cancel."""
    beats: list[Heartbeat] = []
    nodes: str | None = None
    queued: int | None = None
    dead: int | None = None
    spent: str | None = None

    async def ask_agents() -> None:
        nonlocal beats
        beats = await read_heartbeats(runtime.out)

    async def ask_services() -> None:
        nonlocal nodes, queued, dead
        with suppress(BatchflowError):  # a client of one pool alone has no right to ask
            found = Counter(node.state for node in await runtime.connections.compute.nodes(runtime.pool_id))
            nodes = _counted(found) or "none"
            figures = await runtime.connections.figures(runtime.manifest.task_queues)
            queued, dead = sum(each.active for each in figures), sum(each.dead for each in figures)

    async def ask_cost() -> None:
        nonlocal spent
        with suppress(BatchflowError):
            spent = (await cost()).short

    async with task_group() as group:
        for ask in (ask_agents, ask_services, ask_cost):
            group.start_soon(ask)
    states: Counter[str] = Counter(beat.state for beat in beats)
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
    """Take the figures of the first of a client's pools, and forget those of pools that are gone.

    Raises as `look` does.
    """
    for gone in figures.keys() - {runtime.pool_id for runtime, _ in pools}:
        del figures[gone]
    async with task_group() as group:
        for runtime, cost in pools[:_MOST_POOLS]:
            group.start_soon(look, runtime, cost)
