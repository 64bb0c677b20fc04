"""A pool's state at one moment, for display."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from batchflow.model import BROKEN
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from batchflow.costs.cost import Cost
    from batchflow.model import Node
    from batchflow.pool import Pool
    from batchflow.protocol.documents import Heartbeat


@frozen
class Snapshot:
    """State of a pool as Batch, its agents and its queues report it."""

    pool: str
    nodes: tuple[Node, ...]
    beats: tuple[Heartbeat, ...]
    queued: int
    """Messages that wait; each holds one or more tasks."""
    dead: int
    cost: Cost

    @property
    def slots(self) -> int:
        return sum(beat.slots for beat in self.beats)

    @property
    def running(self) -> int:
        return sum(len(beat.running) for beat in self.beats)

    @property
    def completed(self) -> int:
        """Tasks that the living agents have ended."""
        return sum(beat.completed for beat in self.beats)

    @property
    def failed(self) -> int:
        """Of these, those that failed."""
        return sum(beat.failed - beat.cancelled for beat in self.beats)

    @property
    def cancelled(self) -> int:
        """Of these, those that were cancelled."""
        return sum(beat.cancelled for beat in self.beats)

    @property
    def problems(self) -> list[str]:
        """What keeps nodes and agents from working, in words."""
        broken = [f"{node.id}: {node.state}" for node in self.nodes if node.state in BROKEN]
        return broken + [f"{beat.host}: {beat.trouble}" for beat in self.beats if beat.trouble is not None]

    def document(self) -> dict[str, Any]:
        return {
            "pool": self.pool,
            "nodes": [asdict(node) for node in self.nodes],
            "slots": self.slots,
            "running": self.running,
            "queued": self.queued,
            "dead": self.dead,
            "completed": self.completed,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "troubles": self.problems,
            "cost": cost_document(self.cost),
        }


def cost_document(cost: Cost) -> dict[str, Any]:
    """Return a cost for a program."""
    budget = cost.budget
    return {
        "node_hours": cost.node_hours,
        "dedicated_seconds": cost.dedicated_seconds,
        "spot_seconds": cost.spot_seconds,
        "idle_share": cost.idle_share,
        "amount": cost.amount,
        "currency": cost.currency,
        "tasks": cost.tasks,
        "remaining": cost.remaining,
        "seconds_per_task": cost.seconds_per_task,
        "per_task": cost.per_task,
        "seconds_to_finish": cost.seconds_to_finish,
        "to_finish": cost.to_finish,
        "budget": None if budget is None else {"limit": budget.limit, "currency": budget.currency},
        "spent": cost.spent,
    }


async def look(pool: Pool, cost: Cost | None = None) -> Snapshot:
    """Take a snapshot of a pool. Raises `ServiceError`. `cost`: what is known of it; None: it is asked."""
    figures = await pool.runtime.connections.figures(pool.runtime.manifest.task_queues)
    return Snapshot(
        pool.id,
        tuple(await pool.nodes()),
        tuple(await pool.heartbeats()),
        sum(each.active for each in figures),
        sum(each.dead for each in figures),
        await pool.cost() if cost is None else cost,
    )
