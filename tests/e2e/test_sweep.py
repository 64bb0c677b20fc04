"""Sweeping removes what nobody needs, and nothing else."""

from __future__ import annotations

import pytest

from batchflow import Client
from batchflow.pools import sweep as sweeping
from batchflow.pools.sweep import DAY, last_swept, sweep_when_due
from batchflow.ports.broker import QueueSpec

ECHO = {"echo.py": b"def do_action(engine, args):\n    return args\n"}
OTHER = {"other.py": b"def do_action(engine, args):\n    return 'other'\n"}


@pytest.fixture
def all_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything counts as old, also what was written a moment ago."""
    for age in ("_PRESENCE_AGE", "_AGENT_AGE", "_PAYLOAD_AGE"):
        monkeypatch.setattr(sweeping, age, -10.0)


async def names(client: Client, container: str) -> set[str]:
    return {info.name async for info in client.connections.storage.container(container).list()}


@pytest.mark.usefixtures("all_old")
async def test_sweeping_deletes_what_is_old(client: Client, name: str) -> None:
    """Presence, payloads and bundles of the dead go; the default bundle, jobs and outputs stay."""
    pool = await client.ensure_pool(name, files=ECHO, nodes=0)
    await pool.repurpose(OTHER)
    await pool.create_job("kept")
    for blob in ("sessions/job/dead.json", "args/job/dead/1", "cancel/job/dead.json"):
        await pool.runtime.ctl.put(blob, b"{}")
    for blob in ("results/job/dead/1.json", "agents/dead.json", "logs/dead.log", "outputs/job/dead/1/file"):
        await pool.runtime.out.put(blob, b"{}")
    swept = await client.sweep(bundle_age=-10.0, retention=-10.0)
    assert swept.failed == {}
    assert swept.arguments >= 1
    kept = await names(client, pool.runtime.manifest.ctl)
    assert {each.partition("/")[0] for each in kept} == {"bundles", "files", "jobs"}
    assert len(kept) == 3
    assert f"bundles/{pool.runtime.manifest.bundle}.json" in kept
    assert await names(client, pool.runtime.manifest.out) == {"outputs/job/dead/1/file"}
    async with pool.session() as session:
        await session.submit("other.py")
    await pool.delete()


async def test_sweeping_keeps_what_a_living_session_uses(client: Client, name: str) -> None:
    """Bundles and arguments stay while a session is present, however old they are."""
    pool = await client.ensure_pool(name, files=ECHO, nodes=0)
    async with pool.session("living", files=OTHER):
        await pool.runtime.ctl.put("args/default/living/1.json", b"[]")
        before = await names(client, pool.runtime.manifest.ctl)
        swept = await client.sweep(bundle_age=-10.0, retention=-10.0)
        assert not [each for each in swept.removed if pool.runtime.manifest.prefix in each]
        assert before <= await names(client, pool.runtime.manifest.ctl)
    await pool.delete()


async def test_sweeping_deletes_orphaned_queues_and_containers(client: Client, name: str) -> None:
    """Their pool is gone; those of a pool that is being made stay."""
    services = client.connections
    await services.storage.create_container(f"bf-{name}-12345678-ctl")
    await services.admin.create_queue(QueueSpec(f"bf-{name}-12345678-tasks"))
    making = await client.ensure_pool(f"{name}-making", nodes=0)
    await client.connections.manifests.index.delete(f"pools/{name}-making.json")
    swept = await client.sweep()
    mine = sorted(each for each in swept.removed if name in each)
    assert mine == [f"container bf-{name}-12345678-ctl", f"queue bf-{name}-12345678-tasks"]
    await services.compute.delete_pool(f"{name}-making")
    await client.provisioner.remove(making.runtime.manifest)


async def test_sweeping_leaves_what_batchflow_did_not_make(client: Client, name: str) -> None:
    """Names of these queues and containers only begin as batchflow's do."""
    services = client.connections
    others = [f"bf-{name}", f"bf-{name}-data", f"bf-{name}-12345678-data"]
    for each in others:
        await services.storage.create_container(each)
        await services.admin.create_queue(QueueSpec(each))
    swept = await client.sweep()
    assert not [each for each in swept.removed if name in each]
    for each in others:
        assert await services.storage.delete_container(each)
        assert await services.admin.delete_queue(each)


async def test_account_is_swept_once_a_day(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client sweeps soon after its opening, unless another client has within a day."""
    await client.sweep()
    since = await last_swept(client.connections.manifests.index)
    assert since is not None
    assert since < 60
    monkeypatch.setattr("batchflow.pools.sweep._SWEEP_AFTER", 0.0)
    swept: list[str] = []

    async def note(*_: object, **__: object) -> None:
        swept.append("swept")

    monkeypatch.setattr("batchflow.pools.sweep.sweep", note)
    await sweep_when_due(client.connections, client.settings)
    assert swept == []
    monkeypatch.setattr("batchflow.pools.sweep.DAY", since - DAY)
    await sweep_when_due(client.connections, client.settings)
    assert swept == ["swept"]
