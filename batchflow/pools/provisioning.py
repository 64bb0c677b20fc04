"""How pools are created, found and removed, also when several clients do so at the same moment.

Rules:

- A pool of batchflow is a Batch pool and a manifest in the index. The manifest is written last, and only
  where there is none. A client that loses the race for the manifest removes the queues and containers that it
  created, and uses the winner's.
- A Batch pool whose metadata names batchflow and this index, and that has no manifest, is being created. A
  client that finds it waits for its creator, and takes the pool over when the creator seems to have died. A
  client that deletes it does not wait.
- Any other Batch pool, also one of a batchflow with another index, gets queues and documents beside it. Its
  machines are never changed.
- A pool is removed with its Batch pool first and its manifest last, and the manifest only if it still belongs
  to the same pool. So an interrupted deletion is found again and can be repeated.
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

from batchflow.environments import interpreters
from batchflow.environments.variables import store_variables
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
from batchflow.pools.scaling.formula import FormulaWish, scaling_formula
from batchflow.pools.spending.budgets import pool_terms
from batchflow.ports.broker import LEAST_IDLE, QueueRef, QueueSpec
from batchflow.protocol import lanes, layout
from batchflow.protocol.documents import DefaultPackages, PoolManifest
from batchflow.protocol.functions import PYTHON
from batchflow.protocol.layout import INDEX_CONTAINER
from batchflow.support.frozen import frozen
from batchflow.support.progress_report import counted
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from pathlib import Path

    from batchflow.files import BundleSource
    from batchflow.model import ManagedIdentity
    from batchflow.pools.connections import Connections
    from batchflow.ports.compute import PoolDocument, PoolInfo
    from batchflow.settings import AgentSettings, PoolSettings
    from batchflow.support.progress_report import Reporter

_CREATION_TIMEOUT: Final = 30.0
"""Seconds that a creator has for a pool's queues and documents before it counts as dead."""
_CREATOR: Final = "batchflow-maker"
"""The metadata by which a client knows the Batch pool that it created itself."""
_INDEX: Final = "batchflow-index"
"""The metadata that names the index which holds a Batch pool's manifest. Batchflow with another Storage
account may share the Batch account."""
_DELETION_TIMEOUT: Final = 900.0
"""Seconds to wait for the end of a pool that is being deleted."""
_UNDO_TIMEOUT: Final = 20.0
"""Seconds for removing all that a failed creation left."""
_UNDO_STEP_TIMEOUT: Final = 1.0
"""Seconds for removing one resource where a service is out of reach: it was waited for once already."""
_POLL: float = 0.25
"""Seconds between two looks at a pool that is being deleted."""
_POLLS: Final = (0.1, 2.0)
"""The first and the longest pause, in seconds, between two looks at what another client does."""

UndoSteps = Mapping[str, Callable[[], Coroutine[Any, Any, object]]]


@frozen
class EnsuredPool:
    """A pool that can be used."""

    manifest: PoolManifest
    created: bool
    info: PoolInfo | None = None
    """The pool as Batch reports it; None when it was created just now."""

    def why_reused(self, spec: PoolSpec) -> str:
        """Say why a pool that was there is used, and in what it differs from the spec."""
        if self.info is None:
            return "it is there"
        return "; ".join(("it is there", *pool_spec.differences(spec, self.info, self.manifest)))


class PoolProvisioner:
    """Creates, finds and removes the pools of an account. A cancelled method undoes what it began."""

    def __init__(
        self,
        connections: Connections,
        defaults: PoolSettings,
        packages: DefaultPackages | None = None,
        *,
        agent: AgentSettings,
    ) -> None:
        """`packages`: those of the tasks of pools that are created, as their specs require.

        `agent`: the settings say what Python the nodes of a new pool have, and where one comes from that they
        have not.
        """
        self._agent = agent
        self._python = None if agent.python is not None else agent.node_python or PYTHON
        """What a new pool's image is to have, where its spec does not say. None: the settings name the nodes'
        interpreter, whatever their image."""
        self._packages = packages or DefaultPackages()
        self._connections = connections
        self._defaults = defaults
        self._manifests = connections.manifests

    def is_ours(self, info: PoolInfo) -> bool:
        """Tell whether batchflow created the Batch pool, for this index."""
        mark = {**pool_spec.MADE_BY, _INDEX: self._manifests.index.url}
        return mark.items() <= dict(info.metadata).items()

    async def unfinished(self) -> list[str]:
        """List the pools that are being created, or whose creator died before it wrote a manifest."""
        infos = [info async for info in self._connections.compute.pools() if info.state == "active"]
        ours = [info.id for info in infos if self.is_ours(info)]
        return [pool_id for pool_id in ours if await self._manifests.read(pool_id) is None]

    async def remove_unfinished(self, pool_id: str) -> bool:
        """Delete the Batch pool that has no manifest. False: batchflow created none of that name."""
        try:
            info = await self._connections.compute.pool(pool_id)
        except PoolNotFound:
            return False
        if info.state == "deleting" or not self.is_ours(info):
            return False
        return await self._connections.compute.delete_pool(pool_id)

    async def create(self, spec: PoolSpec, sources: list[BundleSource]) -> PoolManifest:
        """Create a pool. Raises `PoolExists`, and `ConfigurationError` before anything is created."""
        if await self._manifests.read(spec.id) is not None:
            raise PoolExists(
                f"there is a pool {spec.id!r} already: attach with client.pool() or ensure_pool()"
            )
        pool_terms(spec, self._defaults)  # raises before anything is created
        document, python, carried = await self._choose(spec)
        interpreter = None
        if carried:
            assert python is not None
            assert self._agent.python_mirror is not None
            interpreter = await interpreters.build(
                python, self._agent.node_platform, self._agent.python_mirror
            )
        creator = {_CREATOR: uuid.uuid4().hex, _INDEX: self._manifests.index.url}
        undo: UndoSteps = {f"Batch pool {spec.id!r}": partial(self._delete_own, spec.id, creator)}
        try:
            await self._connections.compute.create_pool(
                replace(document, metadata={**document.metadata, **creator})
            )
            return await self._create_resources(
                spec, sources, owned=True, python=python, interpreter=interpreter
            )
        except (PoolExists, ConfigurationError):
            raise  # another client's pool, or none
        except BaseException as error:
            await _undo(error, undo)
            raise

    async def python_of(self, spec: PoolSpec) -> tuple[str | None, bool]:
        """Return the minor version of Python of a pool's nodes, and whether agents bring it.

        None: it is not known. The pool need not be there yet.
        """
        if (manifest := await self._manifests.read(spec.id)) is not None:
            return manifest.python, manifest.interpreter is not None
        return (await self._choose(spec))[1:]

    async def _choose(self, spec: PoolSpec) -> tuple[PoolDocument, str | None, bool]:
        """Return what Batch is asked for, the Python of the nodes, and whether agents bring it.

        Raises `ConfigurationError`.
        """
        images = await self._connections.compute.images()
        limits = pool_spec.limits_of(spec)
        formula = None if limits is None else scaling_formula(limits, FormulaWish())
        now, any_image = time.time(), replace(spec, python=None)
        if self._python is None:
            carried = spec.python not in (None, PYTHON)
        else:
            carried = self._agent.python_mirror is not None and pool_spec.must_be_carried(spec, images, now)
        if self._python is not None and not carried:
            document = pool_spec.build(spec, self._defaults, images, now, formula, python=self._python)
            return document, pool_spec.python_of(spec, document.image), False
        if carried and self._agent.python_mirror is None:
            allowed = (
                f"{PYTHON}, because `agent.python` names the interpreter of the nodes; or name a mirror "
            )
            allowed += "that has it in agent.python_mirror"
            raise pool_spec.refusal(spec, "python", spec.python, allowed)
        document = pool_spec.build(any_image, self._defaults, images, now, formula)
        return document, spec.python if carried else None, carried

    async def _delete_own(self, pool_id: str, creator: Mapping[str, str]) -> None:
        """Delete the Batch pool if this client created it: a request that was cut off may have succeeded."""
        try:
            info = await self._connections.compute.pool(pool_id)
        except PoolNotFound:
            return
        if creator.items() <= dict(info.metadata).items():
            await self._connections.compute.delete_pool(pool_id)

    async def attach(self, pool_id: str, report: Reporter) -> PoolManifest:
        """Find a pool; a Batch pool without a manifest gets one. Raises `PoolNotFound`."""
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
        """Find the pool, or create it. Waits while a pool of that name is being deleted.

        Raises `PoolError` when that takes a quarter of an hour.
        """
        try:
            with anyio.fail_after(_DELETION_TIMEOUT):
                return await self._ensure(spec, sources, report)
        except TimeoutError:
            raise PoolError(
                f"another client still deletes or creates pool {spec.id!r} after {_DELETION_TIMEOUT:.0f} s: "
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
                        await self._remove_resources(manifest)
                    return EnsuredPool(await self.create(spec, sources), created=True)
                if info.state != "deleting":
                    if manifest is None:
                        manifest = await self._take_over(info, spec, report)
                    elif not await self._restore(manifest):
                        continue
                    return EnsuredPool(manifest, created=False, info=info)
                report(f"pool {spec.id!r} is being deleted, {counted(info.size, 'node')} left")
            except PoolExists:
                report(f"another client creates pool {spec.id!r}")
            await anyio.sleep(pause)
            pause = min(_POLLS[1], pause * 2)

    async def _restore(self, manifest: PoolManifest) -> bool:
        """Create again the queues that Service Bus deleted for being idle. False: the pool is gone."""
        created = []
        for queue, spec in zip(manifest.queues, self._queue_specs(manifest), strict=True):
            admin = self._connections.admin_of(queue)
            try:
                await admin.figures(queue.entity)
            except QueueNotFound:
                created.append(partial(admin.delete_queue, queue.entity))
                await admin.create_queue(spec)
        if not created:
            return True
        # A deletion begins with the Batch pool: while that is there, the deletion has not removed the queues.
        current, info = await self._look(manifest.pool)
        there = info is not None and info.state != "deleting"
        if there and current is not None and current.prefix == manifest.prefix:
            return True
        for remove in created:
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
        """Create queues and documents for a Batch pool that has none. Raises `PoolExists`."""
        ours = self.is_ours(info)
        if ours and (manifest := await self._await_creator(info.id, report)) is not None:
            return manifest
        identity = pool_spec.choose_identity(spec, info.identities, wanted=self._connections.keyless)
        return await self._create_resources(
            replace(spec, id=info.id), None, owned=ours, python=spec.python, identity=identity
        )

    async def _await_creator(self, pool_id: str, report: Reporter) -> PoolManifest | None:
        pause = _POLLS[0]
        report(f"another client creates pool {pool_id!r}, and has {_CREATION_TIMEOUT:.0f} s for it")
        with anyio.move_on_after(_CREATION_TIMEOUT):
            while True:
                if (manifest := await self._manifests.read(pool_id)) is not None:
                    return manifest
                if (await self._connections.compute.pool(pool_id)).state == "deleting":
                    raise PoolExists(f"pool {pool_id!r} is being deleted", retryable=True)
                await anyio.sleep(pause)
                pause = min(_POLLS[1], pause * 2)
        return None

    async def _create_resources(
        self,
        spec: PoolSpec,
        sources: list[BundleSource] | None,
        *,
        owned: bool,
        python: str | None,
        identity: ManagedIdentity | None = None,
        interpreter: Path | None = None,
    ) -> PoolManifest:
        """Create queues, containers and the bundle, then the manifest: now other clients see the pool."""
        connections = self._connections
        carried = None if interpreter is None else layout.interpreter_blob(interpreter.name)
        manifest = replace(self._plan(spec, owned, identity), python=python, interpreter=carried)
        try:
            async with task_group() as group:
                for queue, queue_spec in zip(manifest.queues, self._queue_specs(manifest), strict=True):
                    group.start_soon(connections.admin_of(queue).create_queue, queue_spec)
                group.start_soon(connections.storage.create_container, INDEX_CONTAINER)
                group.start_soon(connections.storage.create_container, manifest.out, access.out_policies())
                await connections.storage.create_container(manifest.ctl, access.ctl_policies())
                ctl = connections.storage.container(manifest.ctl)
                if interpreter is not None and carried is not None:
                    await ctl.upload(carried, interpreter)
                bundle = await upload(sources or [], ctl, is_new=True)
                variables = await store_variables(
                    ctl, layout.pool_variables_prefix(), pool_spec.variables_of(spec)
                )
            manifest = replace(manifest, bundle=bundle.hash, variables=variables)
            await self._manifests.publish(manifest)
        except BaseException as error:
            published = {f"manifest of pool {spec.id!r}": partial(self._manifests.withdraw, manifest)}
            await _undo(error, {**published, **self._undo_steps(manifest)})
            raise
        return manifest

    def _plan(self, spec: PoolSpec, owned: bool, identity: ManagedIdentity | None) -> PoolManifest:
        prefix = layout.name_prefix(spec.id, uuid.uuid4().hex[:8])
        shards = self._defaults.shards if spec.shards is None else spec.shards
        lane_priorities = lanes.layout() if spec.sharing == "fair" else ()
        return PoolManifest(
            pool=spec.id,
            prefix=prefix,
            task_queues=self._queues(f"{prefix}-tasks", len(lane_priorities) or shards),
            results_queues=self._queues(f"{prefix}-results", shards),
            agents_job=f"{prefix}-agents-1",
            created_at=time.time(),
            owned=owned,
            lock_duration=self._defaults.lock_duration,
            slots=self._defaults.slots if spec.slots is None else spec.slots,
            container=spec.container,
            identity=identity,
            requirements=self._packages.requirements,
            lock=self._packages.lock,
            share_processes=spec.share_processes,
            lanes=lane_priorities,
            tags=tuple(dict.fromkeys(spec.tags)),
            budget=pool_terms(spec, self._defaults),
            elastic=pool_spec.limits_of(spec) if owned else None,  # machines of others are never changed
        )

    def _queues(self, name: str, shards: int) -> tuple[QueueRef, ...]:
        """Name so many queues, one namespace after the other, the first by the hash of the pool's name."""
        namespaces = [admin.namespace for admin in self._connections.admins]
        first = zlib.crc32(name.rpartition("-")[0].encode())
        return tuple(
            QueueRef(namespaces[(first + shard) % len(namespaces)], f"{name}{shard + 1 if shard else ''}")
            for shard in range(shards)
        )

    def _queue_specs(self, manifest: PoolManifest) -> list[QueueSpec]:
        idle = self._defaults.queue_idle
        return queue_specs(manifest, max(idle, LEAST_IDLE) if idle else None)

    def _undo_steps(self, manifest: PoolManifest) -> UndoSteps:
        """List the queues and containers of a pool, each with what removes it."""
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

    async def until_gone(self, pool_id: str, report: Reporter) -> None:
        """Return when Batch no longer deletes a pool of that name."""
        compute = self._connections.compute
        try:
            while (await compute.pool(pool_id)).state == "deleting":
                left = len(await compute.nodes(pool_id))
                report(f"Batch removes the machines: {counted(left, 'node')} left")
                await anyio.sleep(_POLL)
        except PoolNotFound:
            return

    async def remove(self, manifest: PoolManifest) -> None:
        """Remove all that batchflow created for a pool. Idempotent; can be repeated after an interruption.

        Another pool that has got the name meanwhile stays.
        """
        current = await self._manifests.read(manifest.pool)
        if manifest.owned and (current is None or current.prefix == manifest.prefix):
            await self._connections.compute.delete_pool(manifest.pool)
        await self._remove_resources(manifest)

    async def _remove_resources(self, manifest: PoolManifest) -> None:
        """Remove what is beside the Batch pool, the manifest last. The logs of its agents are kept."""
        async with task_group() as group:
            for job in agent_job.generations(manifest):
                group.start_soon(self._connections.compute.delete_job, job)
        out = self._connections.storage.container(manifest.out)
        await node_logs.keep(out, self._manifests.index, manifest.prefix)
        async with task_group() as group:
            for remove in self._undo_steps(manifest).values():
                group.start_soon(remove)
        await self._manifests.withdraw(manifest)


def queue_specs(manifest: PoolManifest, idle: float | None) -> list[QueueSpec]:
    """Describe the queues of a pool with their rules. `idle`: seconds until an idle queue goes."""
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


async def _undo(error: BaseException, steps: UndoSteps) -> None:
    """Remove what a failed creation left. What cannot be removed is noted on the error."""
    out_of_reach = isinstance(error, ServiceError) and error.retryable and error.setting is not None
    with anyio.CancelScope(shield=True), anyio.move_on_after(_UNDO_TIMEOUT):
        for name, remove in steps.items():
            try:
                with anyio.fail_after(_UNDO_STEP_TIMEOUT if out_of_reach else None):
                    await remove()
            except (BatchflowError, TimeoutError) as failure:
                why = str(failure) or "no answer"
                error.add_note(f"left behind, to be removed by hand: {name} ({why})")
