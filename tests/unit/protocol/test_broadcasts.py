"""Orders to run a task once on each of several nodes."""

from __future__ import annotations

import orjson
import pytest

from batchflow.errors import ProtocolError
from batchflow.protocol import wire
from batchflow.protocol.broadcasts import SKEW, BroadcastOrder, Broadcasts, order_of
from batchflow.protocol.wire import Reference, TaskItem


def task(sequence: int, node: str, params: list[str] | Reference) -> TaskItem:
    return TaskItem(
        client="c",
        job="default",
        task_id=node,
        command="x.py",
        params=params,
        uid=wire.make_uid("session", sequence),
        bundle="b",
        submitted_at=float(sequence),
        trace="00-1" if sequence == 0 else None,
    )


@pytest.mark.parametrize(
    "params", [[["an argument" * 100]] * 3, [Reference("args/0", 1), Reference("args/1", 1), ["short"]]]
)
def test_each_node_reads_its_own_task(params: list[list[str] | Reference]) -> None:
    """What tasks have in common is written once, and what one alone has stays its own."""
    items = {f"node-{place}": task(place, f"node-{place}", each) for place, each in enumerate(params)}
    order = order_of("session", 5.0, [(node, wire.encode(item)) for node, item in items.items()])
    document = Broadcasts.decode(Broadcasts((order,)).encode())
    assert {node: document.orders[0].item(node) for node in items} == items
    assert order.item("another") is None
    assert document.encode().count(b"x.py") == 1
    assert document.encode().count(b"an argument") <= 100
    assert "an argument" not in repr(order)


def test_orders_of_dead_clients_are_dropped_when_they_are_over() -> None:
    orders = tuple(
        BroadcastOrder(holder, at, "{}") for holder, at in (("old", 1.0), ("a", 99.0), ("b", 99.0))
    )
    assert [order.holder for order in Broadcasts(orders).without("a", SKEW + 1.5)] == ["b"]
    assert [order.holder for order in Broadcasts(orders).without("", SKEW)] == ["old", "a", "b"]


@pytest.mark.parametrize("text", ["[", "[]", "{}", '{"uid": 1}'])
def test_an_unreadable_task_is_refused(text: str) -> None:
    order = BroadcastOrder("session", 1.0, orjson.dumps({}).decode(), {"node": text})
    with pytest.raises(ProtocolError):
        order.item("node")
