"""Making a pool, cut off at each of its steps: nothing is left behind, or it is said what is."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from batchflow import Client, PoolSpec
from batchflow.errors import PoolError, PoolExists, PoolNotFound, QueueNotFound
from batchflow.files import collect
from batchflow.pools.connections import Connections
from batchflow.pools.manifest_store import ManifestStore
from batchflow.pools.provisioning import PoolProvisioner
from batchflow.protocol.layout import manifest_blob

FILES = {"one.py": b"1", "two.py": b"2"}
MOST = 60
"""Steps that making a pool takes at most."""


class Steps:
    """Counts the requests that somebody makes, and does something just before or just after one of them."""

    def __init__(self, at: int, late: bool, act: Callable[[], object]) -> None:
        self.at, self.late, self.act = at, late, act
        self.taken = 0
        self.cut = False

    async def take(self, request: Any) -> Any:
        self.taken += 1
        mine = self.taken == self.at
        if mine and not self.late:
            request.close()
            self._cut()
            await asyncio.sleep(0)
            raise AssertionError("a request that is not to be made")
        try:
            return await request
        finally:
            if mine:
                self._cut()
                await asyncio.sleep(0)

    def _cut(self) -> None:
        self.cut = True
        self.act()


class Stepping:
    """A service of which each request is a step, until one is cut off; what undoes it is let through."""

    def __init__(self, service: Any, steps: Steps) -> None:
        self._service, self._steps = service, steps

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._service, name)
        if name == "container":
            return lambda *given: Stepping(found(*given), self._steps)
        if not inspect.iscoroutinefunction(found) or self._steps.cut:
            return found
        return lambda *given, **named: self._steps.take(found(*given, **named))


def stepping(services: Connections, steps: Steps) -> Any:
    return replace(
        services,
        queues_admin=Stepping(services.admin, steps),
        storage=Stepping(services.storage, steps),
        machines=Stepping(services.compute, steps),
    )


@pytest.fixture
async def name(client: Client) -> AsyncIterator[str]:
    await client.connections.storage.create_container("batchflow")
    yield (name := f"cut-{uuid.uuid4().hex[:8]}")
    assert await left_of(client, name) == []


async def left_of(client: Client, name: str) -> list[str]:
    """What there is of pools of that name."""
    services, prefix = client.connections, f"bf-{name}"
    left = [f"container {each}" for each in await services.storage.containers(prefix)]
    left += [f"queue {each}" for each in await services.admin.queues() if each.startswith(prefix)]
    left += [f"pool {pool.id}" async for pool in services.compute.pools() if pool.id.startswith(name)]
    index = services.storage.container("batchflow")
    return left + [info.name async for info in index.list("pools/") if name in info.name]


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_interrupted_creation_is_undone_at_each_step(
    client: Client, name: str, late: bool, how: str
) -> None:
    """Cancelled or failed, before or after the service has done it: all that was made goes."""
    sources = await collect(FILES)
    for at in range(1, MOST):
        steps = Steps(at, late, fail)
        maker = PoolProvisioner(
            stepping(client.connections, steps), client.settings.pool, agent=client.settings.agent
        )
        making = asyncio.create_task(maker.create(PoolSpec(f"{name}-{at}", nodes=0), sources))
        if how == "cancelled":
            steps.act = making.cancel
        await asyncio.wait([making])
        if not steps.cut:
            await client.provisioner.remove(making.result())
            assert at > 10
            break
        assert making.cancelled() or making.exception() is not None
        assert await left_of(client, f"{name}-{at}") == [], f"step {at}"
    else:
        pytest.fail("a pool takes more steps than that")
    while await left_of(client, name):  # noqa: ASYNC110 - deleting machines takes a moment
        await asyncio.sleep(0.05)


def fail() -> None:
    raise PoolError("the network is gone", retryable=True)


async def test_resource_that_cannot_be_undone_is_noted_on_the_error(client: Client, name: str) -> None:
    """A removal that fails is noted on the error: what is left, and why."""

    class Stubborn(Stepping):
        def __getattr__(self, called: str) -> Any:
            if called == "delete_container":
                return refuse
            return super().__getattr__(called)

    async def refuse(_: str) -> bool:
        raise PoolError("not today")

    steps = Steps(MOST, False, fail)
    stubborn = Stubborn(client.connections.storage, steps)
    services = replace(stepping(client.connections, steps), storage=stubborn)
    maker = PoolProvisioner(services, client.settings.pool, agent=client.settings.agent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ManifestStore, "publish", lost)
        with pytest.raises(PoolError, match="lost") as caught:
            await maker.create(PoolSpec(name, nodes=0), [])
    notes = caught.value.__notes__
    assert len(notes) == 2
    for container in await client.connections.storage.containers(f"bf-{name}"):
        assert any(f"left behind, to be removed by hand: container '{container}'" in note for note in notes)
        await client.connections.storage.delete_container(container)


async def lost(*_: object) -> None:
    raise PoolError("lost")


async def test_undo_leaves_the_pool_of_another_client_alone(client: Client, name: str) -> None:
    """The creation is cut off while it asks for a pool whose name another program has just taken."""
    other = await client.create_pool(PoolSpec(name, nodes=0))
    await client.connections.manifests.index.delete(manifest_blob(name))
    for late in (False, True):
        for cancelled in (False, True):
            steps = Steps(3, late, fail)  # after the manifest and the images: the Batch pool
            maker = PoolProvisioner(
                stepping(client.connections, steps), client.settings.pool, agent=client.settings.agent
            )
            making = asyncio.create_task(maker.create(PoolSpec(name, nodes=0), []))
            if cancelled:
                steps.act = making.cancel
            with pytest.raises((asyncio.CancelledError, PoolError)):
                await making
            assert steps.cut
            assert (await client.connections.compute.pool(name)).state == "active"
    with pytest.raises(PoolExists):
        await client.create_pool(PoolSpec(name, nodes=0))
    await client.connections.manifests.index.put(manifest_blob(name), other.runtime.manifest.encode())
    await other.delete()


async def test_queues_deleted_for_being_idle_are_created_again(client: Client, name: str) -> None:
    """Queues remove themselves when they are not used for long; ensuring the pool makes new ones."""
    pool = await client.ensure_pool(name, nodes=0)
    sdk = await client.connections.admin._client()  # type: ignore[attr-defined]
    for queue in pool.runtime.manifest.queues:
        assert (await sdk.get_queue(queue.entity)).auto_delete_on_idle.total_seconds() == 90 * 86400
        await client.connections.admin.delete_queue(queue.entity)
    again = await client.ensure_pool(name, nodes=0)
    assert again.runtime.manifest.queues == pool.runtime.manifest.queues
    async with again.session() as session:
        await session.submit("one.py")
        await session.flush()
    await again.delete()
    for queue in pool.runtime.manifest.queues:
        with pytest.raises(QueueNotFound):
            await client.connections.admin.figures(queue.entity)
    with pytest.raises(PoolNotFound):
        await client.pool(name)
