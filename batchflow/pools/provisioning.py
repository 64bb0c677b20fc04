"""How pools come to be, are found, and go, whoever else does the same at the same moment.

Rules:

- A pool of batchflow is a Batch pool and, written last and only where there is none, a manifest in the index.
  Whoever loses the race for the manifest takes back the queues and containers that it laid out, and uses the
  winner's.
- A Batch pool that batchflow made (its metadata says so, and for which index) and that has no manifest is
  being made: whoever finds it waits for its maker, and takes it over when that one seems to have died.
  Whoever deletes it does not wait.
- Anybody else's Batch pool, also that of a batchflow with another index, gets queues and documents beside it,
  and is never touched.
- A pool goes with its Batch pool first and its manifest last, and the manifest only if it is still the same
  pool's: an interrupted deletion is found again and can be repeated.
"""

from __future__ import annotations

import time
import uuid
import zlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio

from batchflow.errors import (
    BatchflowError,
    ConfigurationError,
    PoolError,
    PoolExists,
    PoolNotFound,
    QueueNotFound,
    ServiceError,
)
from batchflow.files import upload
from batchflow.model import PoolSpec
from batchflow.pools import access, agent_job, node_logs, pool_spec
from batchflow.ports.broker import LEAST_IDLE, QueueRef, QueueSpec
from batchflow.protocol import layout
from batchflow.protocol.documents import PoolManifest
from batchflow.protocol.layout import INDEX_CONTAINER
from batchflow.support.frozen import frozen
from batchflow.support.progress_report import counted
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from batchflow.files import BundleSource
    from batchflow.model import ManagedIdentity
    from batchflow.pools.connections import Connections
    from batchflow.ports.compute import PoolInfo
    from batchflow.settings import PoolSettings
    from batchflow.support.progress_report import Reporter

_PROVISIONING: Final = 30.0
"""Seconds that a maker has for a pool's queues and documents before it counts as dead."""
_MAKER: Final = "batchflow-maker"
"""The metadata by which a maker knows the Batch pool that it made itself."""
_INDEX: Final = "batchflow-index"
"""The metadata that says where the manifest of a Batch pool is, or is to be: batchflow with another Storage
account may share the Batch account."""
_GOING: Final = 900.0
"""Seconds that a pool of the same name has to be gone."""
_TAKING_BACK: Final = 20.0
_AWAY: Final = 1.0
"""Seconds for taking back one part, where a service is out of reach: that was waited for once already."""
_POLLS: Final = (0.1, 2.0)
"""The first and the longest pause, in seconds, between two looks at what somebody else is about."""

UndoSteps = Mapping[str, Callable[[], Coroutine[Any, Any, object]]]


@frozen
class EnsuredPool:
    """A pool that can be used."""

    manifest: PoolManifest
    made: bool
    info: PoolInfo | None = None
    """As Batch told of it; None when it was made just now."""


class PoolProvisioner:
    """For one connection. Every method is safe to cancel, and then takes back what it began."""

    def __init__(self, connections: Connections, defaults: PoolSettings) -> None:
        self._connections = connections
        self._defaults = defaults
        self._manifests = connections.manifests

    def is_ours(self, info: PoolInfo) -> bool:
        """Whether batchflow made the machines, for this very index."""
        mark = {**pool_spec.MADE_BY, _INDEX: self._manifests.index.url}
        return mark.items() <= dict(info.metadata).items()

    async def unfinished(self) -> list[str]:
        """Batch pools that are being made, or whose maker died before it wrote a manifest."""
        infos = [info async for info in self._connections.compute.pools() if info.state == "active"]
        ours = [info.id for info in infos if self.is_ours(info)]
        return [pool_id for pool_id in ours if await self._manifests.read(pool_id) is None]

    async def remove_unfinished(self, pool_id: str) -> bool:
        """Delete the machines of a pool that has no manifest; False: there are none of ours of that name."""
        try:
            info = await self._connections.compute.pool(pool_id)
        except PoolNotFound:
            return False
        if info.state == "deleting" or not self.is_ours(info):
            return False
        return await self._connections.compute.delete_pool(pool_id)

    async def create(self, spec: PoolSpec, sources: list[BundleSource]) -> PoolManifest:
        """Raises `PoolExists`, and `ConfigurationError` before anything is made."""
        if await self._manifests.read(spec.id) is not None:
            raise PoolExists(
                f"there is a pool {spec.id!r} already: attach with client.pool() or ensure_pool()"
            )
        images = await self._connections.compute.images()
        document = pool_spec.build(spec, self._defaults, images, time.time())
        maker = {_MAKER: uuid.uuid4().hex, _INDEX: self._manifests.index.url}
        undo: UndoSteps = {f"Batch pool {spec.id!r}": partial(self._unmake, spec.id, maker)}
        try:
            await self._connections.compute.create_pool(
                replace(document, metadata={**document.metadata, **maker})
            )
            return await self._lay_out(spec, sources, owned=True)
        except (PoolExists, ConfigurationError):
            raise  # somebody else's, before or since; or none
        except BaseException as error:
            await _take_back(error, undo)
            raise

    async def _unmake(self, pool_id: str, maker: Mapping[str, str]) -> None:
        """Delete the Batch pool if it is this maker's: of a request that was cut off nobody knows."""
        try:
            info = await self._connections.compute.pool(pool_id)
        except PoolNotFound:
            return
        if maker.items() <= dict(info.metadata).items():
            await self._connections.compute.delete_pool(pool_id)

    async def attach(self, pool_id: str, report: Reporter) -> PoolManifest:
        """Raises `PoolNotFound`."""
        while (manifest := await self._manifests.read(pool_id)) is None:
            info = await self._connections.compute.pool(pool_id)
            if info.state == "deleting":
                raise PoolNotFound(
                    f"pool {pool_id!r} is being deleted: try again when it is gone", retryable=True
                )
            try:
                return await self._take_over(info, PoolSpec(pool_id), report)
            except PoolExists:
                continue
        return manifest

    async def ensure(self, spec: PoolSpec, sources: list[BundleSource], report: Reporter) -> EnsuredPool:
        """The pool of that name, made if there is none. Waits while one of that name is being deleted.

        Raises `PoolError` when that takes a quarter of an hour.
        """
        try:
            with anyio.fail_after(_GOING):
                return await self._ensure(spec, sources, report)
        except TimeoutError:
            raise PoolError(
                f"pool {spec.id!r} is still being deleted or made by somebody after {_GOING:.0f} s: "
                "look at it in the Azure portal, or take another name",
                retryable=True,
            ) from None

    async def _ensure(self, spec: PoolSpec, sources: list[BundleSource], report: Reporter) -> EnsuredPool:
        pause = _POLLS[0]
        while True:
            manifest, info = await self._look(spec.id)
            try:
                if info is None:
                    if manifest is not None:
                        await self._clear(manifest)
                    return EnsuredPool(await self.create(spec, sources), made=True)
                if info.state != "deleting":
                    if manifest is None:
                        manifest = await self._take_over(info, spec, report)
                    elif not await self._restore(manifest):
                        continue
                    return EnsuredPool(manifest, made=False, info=info)
                report(f"pool {spec.id!r} is being deleted, {counted(info.nodes + info.spot, 'node')} left")
            except PoolExists:
                report(f"somebody else makes pool {spec.id!r}")
            await anyio.sleep(pause)
            pause = min(_POLLS[1], pause * 2)

    async def _restore(self, manifest: PoolManifest) -> bool:
        """Make anew the queues that deleted themselves when nobody used them; False: the pool has gone."""
        made = []
        for queue, spec in zip(manifest.queues, self._queue_specs(manifest), strict=True):
            admin = self._connections.admin_of(queue)
            try:
                await admin.figures(queue.entity)
            except QueueNotFound:
                made.append(partial(admin.delete_queue, queue.entity))
                await admin.create_queue(spec)
        if not made:
            return True
        # Whoever deletes a pool begins with the machines: where they are, its queues are still to be removed.
        current, info = await self._look(manifest.pool)
        there = info is not None and info.state != "deleting"
        if there and current is not None and current.prefix == manifest.prefix:
            return True
        for remove in made:
            await remove()
        return False

    async def _look(self, pool_id: str) -> tuple[PoolManifest | None, PoolInfo | None]:
        manifest: PoolManifest | None = None

        async def read() -> None:
            nonlocal manifest
            manifest = await self._manifests.read(pool_id)

        async with task_group() as group:
            group.start_soon(read)
            try:
                info = await self._connections.compute.pool(pool_id)
            except PoolNotFound:
                info = None
        return manifest, info

    async def _take_over(self, info: PoolInfo, spec: PoolSpec, report: Reporter) -> PoolManifest:
        """Lay queues and documents beside a Batch pool that has none. Raises `PoolExists`."""
        ours = self.is_ours(info)
        if ours and (manifest := await self._await_maker(info.id, report)) is not None:
            return manifest
        identity = pool_spec.choose_identity(spec, info.identities, wanted=self._connections.keyless)
        return await self._lay_out(replace(spec, id=info.id), None, owned=ours, identity=identity)

    async def _await_maker(self, pool_id: str, report: Reporter) -> PoolManifest | None:
        pause = _POLLS[0]
        report(f"pool {pool_id!r} is being made by somebody, who has {_PROVISIONING:.0f} s")
        with anyio.move_on_after(_PROVISIONING):
            while True:
                if (manifest := await self._manifests.read(pool_id)) is not None:
                    return manifest
                if (await self._connections.compute.pool(pool_id)).state == "deleting":
                    raise PoolExists(f"pool {pool_id!r} is being deleted", retryable=True)
                await anyio.sleep(pause)
                pause = min(_POLLS[1], pause * 2)
        return None

    async def _lay_out(
        self,
        spec: PoolSpec,
        sources: list[BundleSource] | None,
        *,
        owned: bool,
        identity: ManagedIdentity | None = None,
    ) -> PoolManifest:
        """The queues, the containers, the bundle, then the manifest: with that the pool exists for others."""
        connections, manifest = self._connections, self._plan(spec, owned, identity)
        try:
            async with task_group() as group:
                for queue, queue_spec in zip(manifest.queues, self._queue_specs(manifest), strict=True):
                    group.start_soon(connections.admin_of(queue).create_queue, queue_spec)
                group.start_soon(connections.storage.create_container, INDEX_CONTAINER)
                group.start_soon(connections.storage.create_container, manifest.out, access.out_policies())
                await connections.storage.create_container(manifest.ctl, access.ctl_policies())
                bundle = await upload(sources or [], connections.storage.container(manifest.ctl), is_new=True)
            manifest = replace(manifest, bundle=bundle.hash)
            await self._manifests.publish(manifest)
        except BaseException as error:
            published = {f"manifest of pool {spec.id!r}": partial(self._manifests.withdraw, manifest)}
            await _take_back(error, {**published, **self._parts(manifest)})
            raise
        return manifest

    def _plan(self, spec: PoolSpec, owned: bool, identity: ManagedIdentity | None) -> PoolManifest:
        prefix = layout.name_prefix(spec.id, uuid.uuid4().hex[:8])
        shards = self._defaults.shards if spec.shards is None else spec.shards
        return PoolManifest(
            pool=spec.id,
            prefix=prefix,
            task_queues=self._queues(f"{prefix}-tasks", shards),
            results_queues=self._queues(f"{prefix}-results", shards),
            agents_job=f"{prefix}-agents-1",
            created_at=time.time(),
            owned=owned,
            lock_duration=self._defaults.lock_duration,
            slots=self._defaults.slots if spec.slots is None else spec.slots,
            container=spec.container,
            identity=identity,
        )

    def _queues(self, name: str, shards: int) -> tuple[QueueRef, ...]:
        """So many queues, one namespace after the other; pools with fewer begin where chance has it."""
        namespaces = [admin.namespace for admin in self._connections.admins]
        first = zlib.crc32(name.rpartition("-")[0].encode())
        return tuple(
            QueueRef(namespaces[(first + shard) % len(namespaces)], f"{name}{shard + 1 if shard else ''}")
            for shard in range(shards)
        )

    def _queue_specs(self, manifest: PoolManifest) -> list[QueueSpec]:
        idle = self._defaults.queue_idle
        return queue_specs(manifest, max(idle, LEAST_IDLE) if idle else None)

    def _parts(self, manifest: PoolManifest) -> UndoSteps:
        """What a layout is made of, and how each part is removed."""
        connections, storage = self._connections, self._connections.storage
        return {
            **{
                f"queue {queue.entity!r}": partial(connections.admin_of(queue).delete_queue, queue.entity)
                for queue in manifest.queues
            },
            **{
                f"container {name!r}": partial(storage.delete_container, name)
                for name in (manifest.ctl, manifest.out)
            },
        }

    async def remove(self, manifest: PoolManifest) -> None:
        """What batchflow made of a pool. Idempotent; interrupted, it can be repeated.

        Another pool that has got the name meanwhile stays.
        """
        current = await self._manifests.read(manifest.pool)
        if manifest.owned and (current is None or current.prefix == manifest.prefix):
            await self._connections.compute.delete_pool(manifest.pool)
        await self._clear(manifest)

    async def _clear(self, manifest: PoolManifest) -> None:
        """What is beside the Batch pool, the manifest last. What its agents logged is kept."""
        async with task_group() as group:
            for job in agent_job.generations(manifest):
                group.start_soon(self._connections.compute.delete_job, job)
        out = self._connections.storage.container(manifest.out)
        await node_logs.keep(out, self._manifests.index, manifest.prefix)
        async with task_group() as group:
            for remove in self._parts(manifest).values():
                group.start_soon(remove)
        await self._manifests.withdraw(manifest)


def queue_specs(manifest: PoolManifest, idle: float | None) -> list[QueueSpec]:
    """How a pool's queues are made, and who may do what on them; unused for `idle` seconds they go."""
    lock = manifest.lock_duration
    on_tasks = (access.AGENT_ON_TASKS, access.CLIENT_ON_TASKS)
    on_results = (access.AGENT_ON_RESULTS, access.CLIENT_ON_RESULTS)
    return [
        *(
            QueueSpec(queue.entity, lock_duration=lock, idle=idle, rules=on_tasks)
            for queue in manifest.task_queues
        ),
        *(
            QueueSpec(queue.entity, sessions=True, lock_duration=lock, idle=idle, rules=on_results)
            for queue in manifest.results_queues
        ),
    ]


async def _take_back(error: BaseException, parts: UndoSteps) -> None:
    """Undo what did not come to its end; what cannot be undone is noted on the error."""
    away = isinstance(error, ServiceError) and error.retryable and error.setting is not None
    with anyio.CancelScope(shield=True), anyio.move_on_after(_TAKING_BACK):
        for name, remove in parts.items():
            try:
                with anyio.fail_after(_AWAY if away else None):
                    await remove()
            except (BatchflowError, TimeoutError) as failure:
                why = str(failure) or "no answer"
                error.add_note(f"left behind, to be removed by hand: {name} ({why})")
