"""What a pool has cost, from what its agents have used."""

from __future__ import annotations

import pytest

from batchflow import Budget, ConfigurationError, Cost
from batchflow.pools.reports.usage import UsageReader, newest, total
from batchflow.pools.spending.cost import cost_of
from batchflow.pools.spending.prices import NodePrice
from batchflow.protocol import layout
from batchflow.protocol.documents import Heartbeat, Usage, UsageRecord
from batchflow.testing.storage import MemoryStorage


def beat(agent: str, usage: Usage | None) -> bytes:
    return Heartbeat(
        agent=agent,
        node=agent,
        host=agent,
        boot_id="b",
        pid=1,
        state="ready",
        slots=1,
        started_at=0.0,
        beat_at=0.0,
        interval=5.0,
        usage=usage,
    ).encode()


def test_adds_up_by_kind_of_node() -> None:
    used = [Usage(True, 3600, 1800, 10), Usage(False, 7200, 7200, 20), Usage(True, 3600, 0, 0)]
    cost = cost_of(total(used), NodePrice(0.1, 0.02), "USD", remaining=3)
    assert (cost.dedicated_seconds, cost.spot_seconds, cost.tasks) == (7200, 7200, 30)
    assert cost.amount == pytest.approx(0.24)
    assert cost.idle_share == pytest.approx(1 - 9000 / 14400)
    assert cost.per_task == pytest.approx(0.008)
    assert cost.seconds_to_finish == pytest.approx(900)
    assert cost.to_finish == pytest.approx(900 * 0.24 / 14400)


@pytest.mark.parametrize("price", [NodePrice(), NodePrice(0.1, None)])
def test_has_no_amount_where_the_price_of_a_kind_that_ran_is_not_known(price: NodePrice) -> None:
    cost = cost_of(total([Usage(True, 60, 0, 0), Usage(False, 60, 0, 0)]), price, "USD")
    assert (cost.amount, cost.currency, cost.per_task, cost.to_finish) == (None, None, None, None)
    assert cost.node_hours == pytest.approx(1 / 30)
    assert "unknown" in str(cost)


def test_needs_no_price_of_a_kind_that_did_not_run() -> None:
    assert cost_of(total([Usage(True, 3600, 0, 0)]), NodePrice(0.1, None), "USD").amount == pytest.approx(0.1)


def test_says_nothing_of_tasks_before_one_has_ended() -> None:
    cost = cost_of(total([Usage(True, 60, 60, 0)]), NodePrice(), None, remaining=4)
    assert (cost.seconds_per_task, cost.seconds_to_finish) == (None, None)
    assert Cost().idle_share is None


async def test_reads_records_and_newer_heartbeats_once_for_each_agent() -> None:
    storage = MemoryStorage()
    await storage.create_container("out")
    out = storage.container("out")
    gone = UsageRecord("gone", "n", Usage(True, 50, 10, 1))
    old = UsageRecord("both", "n", Usage(True, 60, 10, 1))
    for record in (gone, old):
        await out.put(layout.usage_blob(record.agent), record.encode())
    await out.put(layout.usage_blob("strange"), b"not a record")
    await out.put(layout.heartbeat_blob("both"), beat("both", Usage(True, 65, 12, 2)))
    await out.put(layout.heartbeat_blob("new"), beat("new", Usage(False, 5, 1, 0)))
    await out.put(layout.heartbeat_blob("earlier"), beat("earlier", None))
    reader = UsageReader(out)
    for _ in range(2):
        dedicated, spot = total(await reader.read())
        assert dedicated == Usage(True, 115, 22, 3)
        assert spot == Usage(False, 5, 1, 0)


def test_takes_the_newest_that_is_told_of_an_agent() -> None:
    assert newest(None, Usage(True, 1), Usage(True, 3), Usage(True, 2)).seconds == 3


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({}, "neither"),
        ({"node_hours": 1, "amount": 1}, "both"),
        ({"node_hours": -1}, r"budget\.node_hours"),
        ({"node_hours": 0}, r"budget\.node_hours"),
        ({"node_hours": True}, r"budget\.node_hours"),
        ({"node_hours": float("inf")}, r"budget\.node_hours"),
        ({"node_hours": "2"}, r"budget\.node_hours"),
        ({"amount": 2}, r"budget\.currency"),
        ({"amount": 2, "currency": "euro"}, r"budget\.currency"),
        ({"amount": -2, "currency": "EUR"}, r"budget\.amount"),
        ({"node_hours": 2, "currency": "EUR"}, r"budget\.currency"),
    ],
)
def test_refuses_a_budget_that_is_none_and_names_the_key(given: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigurationError, match=key):
        Budget(**given)  # type: ignore[arg-type]


def test_says_what_a_budget_is() -> None:
    assert str(Budget(node_hours=2)) == "2 node-hours"
    assert str(Budget(amount=1200, currency="EUR")) == "1,200.00 EUR"
