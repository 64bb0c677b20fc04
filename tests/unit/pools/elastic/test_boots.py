"""Boots that were seen: an agent that waited for a node that was allocated for it."""

from __future__ import annotations

from batchflow.client import Client
from batchflow.model import Image
from batchflow.pool import Pool
from batchflow.pools.elastic.boots import BootRecords, boots_of, kind_of, read_history
from batchflow.ports.compute import BatchTaskInfo, NodeInfo, PoolInfo

INFO = PoolInfo("p", "active", "steady", "Standard_D2s_v3", 1, 1, 0, 0, 1, {}, image=Image())
NEW = NodeInfo("new", "running", dedicated=True, allocated_at=110.0)
OLD = NodeInfo("old", "running", dedicated=True, allocated_at=50.0)


def agent(name: str, node: str, started_at: float | None, retries: int = 0) -> BatchTaskInfo:
    return BatchTaskInfo(name, "running", node, created_at=100.0, started_at=started_at, retries=retries)


def test_only_agents_on_nodes_that_are_younger_count() -> None:
    """The node of another one was there; one has not started, and one was started again."""
    tasks = [agent("a", "new", 280.0), agent("b", "old", 101.0), agent("c", "new", None)]
    assert boots_of([*tasks, agent("d", "new", 400.0, retries=1)], [NEW, OLD]) == {"a": 180.0}


def test_kind_of_a_node_is_a_part_of_a_name() -> None:
    """It tells VM size and image."""
    assert kind_of(INFO) == "standard-d2s-v3-ubuntu-24-04-lts-server"


async def test_boots_are_kept_for_the_account(client: Client, pool: Pool) -> None:
    """Each is counted once."""
    index, records = client.connections.manifests.index, BootRecords()
    assert (await records.history(index, INFO)).seconds is None
    for boots in ({"a": 100.0}, {"a": 100.0, "b": 200.0}):
        await records.note(index, INFO, boots, slots=2)
    kept = await read_history(index, INFO)
    assert kept.seconds is not None
    assert (kept.seconds.mean, kept.seconds.count, kept.slots) == (150.0, 2, 2)
