"""An open connection to one deployment: Batch account, Storage account, Service Bus namespace."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from batchflow import agents, control
from batchflow.broker import AccessRule, QueueRef, QueueSpec
from batchflow.compute import PoolDocument
from batchflow.concurrency import task_group
from batchflow.control import INDEX_CONTAINER, PoolManifest
from batchflow.errors import (
    BlobConflict,
    BlobNotFound,
    ConfigurationError,
    PoolExists,
    PoolNotFound,
    ServiceError,
    SessionClosed,
)
from batchflow.lifecycle import Supervised
from batchflow.model import Image, PoolSpec
from batchflow.pool import Pool
from batchflow.services import connect, preload
from batchflow.settings import PoolSettings, Settings, load_settings
from batchflow.sources import Files, collect, upload
from batchflow.storage import AccessPolicy

if TYPE_CHECKING:
    from batchflow.services import Services
    from batchflow.sources import Source
    from batchflow.storage import Container

logger = logging.getLogger(__name__)

_POLICY_LIFE: Final = 10 * 365 * 86400.0
"""Seconds. Agents' signatures end with the pool, by the removal of its policies, not by the clock."""
_MADE_BY: Final = {"batchflow": "1"}
"""The metadata of the Batch pools that batchflow made."""


class Client(Supervised):
    """Opened by `async with` or `await`, closed by leaving it or by `aclose`, also from another asyncio task.

    ``async with Client.local() as client`` or ``client = await Client.from_config()``.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__("batchflow client")
        self._settings = settings
        self._local_options: dict[str, float] = {}
        self._connected: Services | None = None
        self._pools: list[Pool] = []

    @classmethod
    def local(cls, *, nodes: int = 2, slots: int = 1, latency: float = 0.0) -> Client:
        """On a local cloud of its own, which lives and ends with this client.

        `nodes`: of pools that do not say otherwise; `slots`: tasks at once on a node; `latency`: seconds
        that each answer of the cloud is delayed.
        """
        if nodes < 0 or slots < 0 or latency < 0:
            raise ConfigurationError("Client.local: nodes, slots and latency cannot be negative")
        client = cls(Settings(target="local", pool=PoolSettings(nodes=nodes, slots=slots)))
        client._local_options = {"latency": latency}
        return client

    @classmethod
    def from_config(cls, path: str | PathLike[str] | None = None, *, profile: str | None = None) -> Client:
        """By a configuration file, its profile and the environment: see `batchflow.settings`.

        Raises `ConfigurationError` at once for what is wrong or missing.
        """
        settings = load_settings(path, profile=profile)
        if settings.target == "azure":
            settings.check()
        return cls(settings)

    @property
    def settings(self) -> Settings:
        """What another program needs to connect: `to_toml()` makes its configuration file. Has secrets."""
        return self._settings

    # ---- pools

    async def create_pool(self, spec: PoolSpec) -> Pool:
        """Make machines, queues and documents. Does not wait for nodes. Raises `PoolExists`."""
        sources = await collect(spec.files)
        document = self._pool_document(spec)
        if await self._read_manifest(spec.id) is not None:
            raise PoolExists(
                f"there is a pool {spec.id!r} already: attach with client.pool() or ensure_pool()"
            )
        return await self._create(document, spec.slots, sources)

    async def pool(self, pool_id: str) -> Pool:
        """Attach; the machines and what runs on them are left as they are. Raises `PoolNotFound`.

        A Batch pool that batchflow does not know yet gets queues and documents beside it.
        """
        control.check_pool_id(pool_id)
        manifest = await self._read_manifest(pool_id)
        if manifest is None:
            manifest = await self._adopt(pool_id, None)
        return self._remember(Pool(self, manifest))

    async def ensure_pool(
        self,
        pool_id: str,
        *,
        files: Files = (),
        nodes: int | None = None,
        spec: PoolSpec | None = None,
    ) -> Pool:
        """Create the pool, or reuse it and repurpose it for these files. Does not wait for nodes."""
        control.check_pool_id(pool_id)
        spec = replace(spec or PoolSpec(pool_id), id=pool_id)
        spec = replace(spec, nodes=spec.nodes if nodes is None else nodes)
        files = files or spec.files
        document = self._pool_document(spec)
        sources = await collect(files)
        manifest = await self._read_manifest(pool_id)
        if manifest is None:
            try:
                return await self._create(document, spec.slots, sources)
            except PoolExists:
                manifest = await self._read_manifest(pool_id)
                if manifest is None:
                    manifest = await self._adopt(pool_id, spec.slots)
        pool = self._remember(Pool(self, manifest))
        if sources:
            bundle = await upload(sources, pool._ctl)
            if bundle.hash != manifest.bundle:
                await pool._change(lambda current: replace(current, bundle=bundle.hash))
                logger.info("pool_repurposed", extra={"pool": pool_id, "bundle": bundle.hash})
        if nodes is not None:
            info = await self._services.compute.pool(pool_id)
            if info.wanted != nodes and info.allocation == "steady":
                await pool.resize(nodes, spot=info.spot_wanted)
        return pool

    async def pools(self) -> AsyncIterator[Pool]:
        """Those that batchflow knows in this account."""
        try:
            names = [info.name async for info in self._index.list("pools/")]
        except BlobNotFound:
            return
        for name in names:
            manifest = await self._read_manifest(name.removeprefix("pools/").removesuffix(".json"))
            if manifest is not None:
                yield Pool(self, manifest)

    async def delete_pool(self, pool_id: str) -> None:
        """Remove what batchflow made for it. Raises `PoolNotFound` when that is nothing."""
        control.check_pool_id(pool_id)
        manifest = await self._read_manifest(pool_id)
        if manifest is None:
            raise PoolNotFound(f"batchflow has no pool {pool_id!r} in this account")
        for pool in [pool for pool in self._pools if pool.id == pool_id]:
            self._pools.remove(pool)
            await pool.delete()
            return
        await Pool(self, manifest).delete()

    async def delete_all_pools(self) -> None:
        """Only those that batchflow made, or laid its queues and documents beside."""
        pools = [pool async for pool in self.pools()]
        async with task_group() as group:
            for pool in pools:
                group.start_soon(self.delete_pool, pool.id)

    # ---- making pools

    @property
    def _services(self) -> Services:
        if self._connected is None or self.closed:
            raise SessionClosed("the client is not open: use `async with` or `await`, and not after aclose()")
        return self._connected

    @property
    def _index(self) -> Container:
        return self._services.storage.container(INDEX_CONTAINER)

    def _remember(self, pool: Pool) -> Pool:
        self._pools.append(pool)
        return pool

    def _pool_document(self, spec: PoolSpec) -> PoolDocument:
        control.check_pool_id(spec.id)
        defaults = self._settings.pool
        nodes = defaults.nodes if spec.nodes is None else spec.nodes
        if nodes < 0 or spec.spot < 0 or (spec.slots or 0) < 0:
            raise ConfigurationError(
                f"pool {spec.id!r}: {nodes} nodes, {spec.spot} spot, {spec.slots} slots: none can be negative"
            )
        return PoolDocument(
            id=spec.id,
            vm_size=spec.vm_size or defaults.vm_size,
            image=spec.image or Image(),
            nodes=nodes,
            spot=spec.spot,
            start_command=spec.start_command,
            environment=spec.environment,
            metadata=_MADE_BY,
        )

    async def _read_manifest(self, pool_id: str) -> PoolManifest | None:
        try:
            blob = await self._index.get(control.manifest_blob(pool_id))
        except BlobNotFound:
            return None
        return PoolManifest.decode(blob.data)

    async def _create(self, document: PoolDocument, slots: int | None, sources: list[Source]) -> Pool:
        await self._services.compute.create_pool(document)
        try:
            manifest = await self._lay_out(document.id, slots, sources, owned=True)
        except BaseException as error:
            await self._take_back(
                error,
                {f"Batch pool {document.id!r}": partial(self._services.compute.delete_pool, document.id)},
            )
            raise
        return self._remember(Pool(self, manifest))

    async def _lay_out(
        self, pool_id: str, slots: int | None, sources: list[Source] | None, *, owned: bool
    ) -> PoolManifest:
        """The queues, the containers, the bundle, then the manifest: with that the pool exists for others."""
        defaults = self._settings.pool
        prefix = control.name_prefix(pool_id, uuid.uuid4().hex[:8])
        namespace = self._services.admin.namespace
        manifest = PoolManifest(
            pool=pool_id,
            prefix=prefix,
            task_queues=(QueueRef(namespace, f"{prefix}-tasks"),),
            results_queues=(QueueRef(namespace, f"{prefix}-results"),),
            agents_job=f"{prefix}-agents-1",
            created_at=time.time(),
            owned=owned,
            lock_duration=defaults.lock_duration,
            slots=defaults.slots if slots is None else slots,
        )
        try:
            async with task_group() as group:
                for spec in queue_specs(manifest):
                    group.start_soon(self._services.admin.create_queue, spec)
                group.start_soon(self._ensure_index)
                group.start_soon(self._services.storage.create_container, manifest.out, (_out_policy(),))
                await self._services.storage.create_container(manifest.ctl, (_ctl_policy(),))
                bundle = await upload(sources or [], self._services.storage.container(manifest.ctl))
            manifest = replace(manifest, bundle=bundle.hash)
            await self._publish(manifest)
        except BaseException as error:
            await self._take_back(error, self._parts(manifest))
            raise
        return manifest

    async def _adopt(self, pool_id: str, slots: int | None) -> PoolManifest:
        """Lay queues and documents beside a Batch pool of somebody else's."""
        info = await self._services.compute.pool(pool_id)
        if info.state == "deleting":
            raise PoolNotFound(
                f"pool {pool_id!r} is being deleted: try again when it is gone", retryable=True
            )
        return await self._lay_out(pool_id, slots, None, owned=False)

    async def _publish(self, manifest: PoolManifest) -> None:
        try:
            await self._index.put(control.manifest_blob(manifest.pool), manifest.encode(), create=True)
        except BlobConflict as error:
            raise PoolExists(f"somebody else made pool {manifest.pool!r} at this moment") from error

    def _parts(self, manifest: PoolManifest) -> dict[str, Callable[[], Awaitable[object]]]:
        """What a layout is made of, and how each part is removed."""
        services = self._services
        queues = (*manifest.task_queues, *manifest.results_queues)
        return {
            **{
                f"queue {queue.entity!r}": partial(services.admin.delete_queue, queue.entity)
                for queue in queues
            },
            **{
                f"container {name!r}": partial(services.storage.delete_container, name)
                for name in (manifest.ctl, manifest.out)
            },
        }

    async def _ensure_index(self) -> None:
        await self._services.storage.create_container(INDEX_CONTAINER)

    async def _take_back(
        self, error: BaseException, parts: Mapping[str, Callable[[], Awaitable[object]]]
    ) -> None:
        """Undo what did not come to its end; what cannot be undone is noted on the error."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(self.close_timeout):
            for name, remove in parts.items():
                try:
                    await remove()
                except ServiceError as failure:
                    error.add_note(f"left behind, to be removed by hand: {name} ({failure})")

    # ---- the supervisor

    async def _serve(self) -> None:
        async with AsyncExitStack() as stack:
            if self._settings.target == "local" and not self._settings.connected:
                await self._start_local(stack)
            self._connected = await connect(self._settings)
            stack.push_async_callback(self._connected.aclose)
            self._ready()
            await self._closing.wait()
            await self._close_sessions()

    async def _start_local(self, stack: AsyncExitStack) -> None:
        from batchflow.local.launch import LocalCloudProcess

        pool = self._settings.pool
        cloud = LocalCloudProcess(
            nodes=pool.nodes, slots=pool.slots, latency=self._local_options.get("latency", 0.0)
        )
        stack.push_async_callback(cloud.aclose)
        async with task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, preload)
            settings = await cloud.start()
        self._settings = replace(
            self._settings,
            batch=settings.batch,
            storage=settings.storage,
            servicebus=settings.servicebus,
            agent=replace(self._settings.agent, python=self._settings.agent.python or settings.agent.python),
        )

    async def _close_sessions(self) -> None:
        sessions = [session for pool in self._pools for session in pool._sessions]
        results = await asyncio.gather(*(session.aclose() for session in sessions), return_exceptions=True)
        for error in results:
            if isinstance(error, Exception):
                logger.warning("session_close_failed", extra={"error": str(error)})


def queue_specs(manifest: PoolManifest) -> list[QueueSpec]:
    """How a pool's queues are made, and who may do what on them."""
    agent_tasks = AccessRule(agents.AGENT_RULE, frozenset({"Listen", "Send"}))
    agent_results = AccessRule(agents.AGENT_RULE, frozenset({"Send"}))
    client_tasks = AccessRule("client", frozenset({"Send"}))
    client_results = AccessRule("client", frozenset({"Listen"}))
    lock = manifest.lock_duration
    return [
        *(
            QueueSpec(queue.entity, lock_duration=lock, rules=(agent_tasks, client_tasks))
            for queue in manifest.task_queues
        ),
        *(
            QueueSpec(queue.entity, sessions=True, lock_duration=lock, rules=(agent_results, client_results))
            for queue in manifest.results_queues
        ),
    ]


def _ctl_policy() -> AccessPolicy:
    return AccessPolicy(agents.CTL_POLICY, "r", time.time() + _POLICY_LIFE)


def _out_policy() -> AccessPolicy:
    return AccessPolicy(agents.OUT_POLICY, "acw", time.time() + _POLICY_LIFE)
