"""What a pool looks like at one moment, for views that cannot ask its services: nodes, slots, queue, cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchflow.model import Node
from batchflow.support.frozen import frozen

if TYPE_CHECKING:
    from batchflow.ports.compute import NodeInfo
    from batchflow.protocol.documents import Heartbeat


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
