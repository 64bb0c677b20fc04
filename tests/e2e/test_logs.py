"""What agents logged outlives their pool, however that goes, and is removed in the end."""

from __future__ import annotations

import uuid

import pytest

from batchflow import Client
from batchflow.errors import BlobConflict
from batchflow.pools import node_logs
from batchflow.pools import sweep as sweeping
from batchflow.pools.node_logs import NodeLog
from batchflow.protocol.layout import log_blob


@pytest.fixture
def name() -> str:
    return f"Logs_{uuid.uuid4().hex[:8]}"


async def logs(client: Client, pool: str | None) -> list[NodeLog]:
    return [log async for log in client.logs(pool)]


async def test_deleting_a_pool_keeps_the_logs_of_its_agents(client: Client, name: str) -> None:
    """The logs of an earlier pool of that name stay too; deleting twice changes nothing."""
    for generation in range(2):
        pool = await client.ensure_pool(name, nodes=0)
        for agent in range(20):
            await pool.runtime.out.append(log_blob(name, "node-1", f"{generation}-{agent}"), b"{}\n")
        await pool.runtime.out.append("logs/no-agents.log", b"what code on a node wrote")
        await pool.delete()
        await pool.delete()
    kept = await logs(client, name)
    assert sorted(log.agent for log in kept) == sorted(f"{g}-{a}" for g in range(2) for a in range(20))
    assert {(log.node, log.kept, log.pool) for log in kept} == {("node-1", True, name.lower())}
    assert {await log.read() for log in kept} == {"{}\n"}
    assert {log.agent for log in kept} <= {log.agent for log in await logs(client, None)}


async def test_sweeping_keeps_the_logs_of_a_lost_pool(client: Client, name: str) -> None:
    """Another program deleted its machines, and its manifest is gone."""
    pool = await client.ensure_pool(name, nodes=0)
    await pool.runtime.out.append(log_blob(name, "node-1", "a"), b"{}\n")
    await client.connections.compute.delete_pool(name)
    await client.connections.manifests.index.delete(f"pools/{name.lower()}.json")
    swept = await client.sweep()
    assert f"container {pool.runtime.manifest.out}" in swept.removed
    assert [(log.agent, log.kept) for log in await logs(client, name)] == [("a", True)]
    await pool.delete()


async def test_sweeping_deletes_kept_logs_by_their_age(
    client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Younger logs stay."""
    pool = await client.ensure_pool(name, nodes=0)
    await pool.runtime.out.append(log_blob(name, "node-1", "a"), b"{}\n")
    await pool.delete()
    await client.sweep()
    assert len(await logs(client, name)) == 1
    monkeypatch.setattr(sweeping, "_KEPT_LOG_AGE", -10.0)
    await client.sweep()
    assert await logs(client, name) == []


async def test_pool_whose_logs_cannot_be_kept_is_not_deleted(
    client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says so, and a second deletion goes on where the first one stopped."""

    async def fail(*_: object) -> None:
        raise BlobConflict("somebody is in the way", retryable=True)

    pool = await client.ensure_pool(name, nodes=0)
    await pool.runtime.out.append(log_blob(name, "node-1", "a"), b"{}\n")
    with monkeypatch.context() as patch:
        patch.setattr(node_logs, "keep", fail)
        with pytest.raises(BlobConflict):
            await pool.delete()
    await pool.delete()
    assert [log.agent for log in await logs(client, name)] == ["a"]
