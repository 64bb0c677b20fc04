"""Orders to run a task once on each of several nodes, as the agents read them. Pure.

One document has the orders of all clients. An agent looks at it with each heartbeat, and runs what names its
node. An order goes when its client has what it wanted, so an agent stops what it runs for an order that is
gone. An order whose client died stays until another client writes the document, and nothing of it begins
after `expires_at`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, Final

import orjson

from batchflow.errors import ProtocolError
from batchflow.protocol import wire
from batchflow.protocol.documents import Document
from batchflow.support.frozen import frozen

BROADCAST: Final = "broadcast"
"""What an agent's heartbeat has among `accepts` when the agent runs these tasks."""
MOST_SECONDS: Final = 86400.0
"""Seconds that a broadcast may take. An agent remembers for longer than that what it ran."""
SKEW: Final = 60.0
"""Seconds that the clocks of a client and of a node may differ."""


@frozen
class BroadcastOrder:
    """A task for each of some nodes. What the tasks have in common is written once."""

    holder: str
    """The incarnation of the session that gave the order, and gets the results."""
    expires_at: float
    """When nothing of it begins any more: seconds since the epoch, by the client's clock."""
    task: str = field(repr=False)
    """The fields that the tasks of all nodes have in common, as JSON."""
    nodes: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The other fields of each node's task, as JSON, by the node's id in Batch."""

    def item(self, node: str) -> wire.TaskItem | None:
        """Return the task of a node; None when the order does not name it. Raises `ProtocolError`."""
        if (own := self.nodes.get(node)) is None:
            return None
        try:
            fields = _fields(self.task) | _fields(own)
        except orjson.JSONDecodeError as error:
            raise ProtocolError(f"a broadcast with a task that is not JSON: {error}") from error
        (item,) = wire.decode(wire.join("tasks", [wire.dumps(fields)]))
        assert isinstance(item, wire.TaskItem)
        return item

    def is_over(self, now: float) -> bool:
        """Return whether nothing of it begins any more. `now`: seconds since the epoch, by any clock."""
        return now > self.expires_at + SKEW


def order_of(holder: str, expires_at: float, items: Sequence[tuple[str, bytes]]) -> BroadcastOrder:
    """Make an order of the tasks of some nodes, each as it travels."""
    tasks = {node: _fields(item) for node, item in items}
    first, *others = tasks.values()
    common = {
        name: value
        for name, value in first.items()
        if all(name in other and other[name] == value for other in others)
    }
    own = {node: {name: task[name] for name in task if name not in common} for node, task in tasks.items()}
    return BroadcastOrder(
        holder,
        expires_at,
        task=wire.dumps(common).decode(),
        nodes={node: wire.dumps(fields).decode() for node, fields in own.items()},
    )


@frozen
class Broadcasts(Document):
    """The orders of all clients, the oldest first."""

    orders: tuple[BroadcastOrder, ...] = ()

    def without(self, holder: str, now: float) -> tuple[BroadcastOrder, ...]:
        """Return the orders of others, but for those that are over."""
        return tuple(order for order in self.orders if order.holder != holder and not order.is_over(now))


def _fields(text: str | bytes) -> dict[str, Any]:
    fields = orjson.loads(text)
    if not isinstance(fields, dict):
        raise ProtocolError("a broadcast with a task that is no object")
    return fields
