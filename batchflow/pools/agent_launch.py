"""Agents onto nodes: the Batch job that hosts one agent task for each node of a pool."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
from dataclasses import field
from typing import TYPE_CHECKING, Final

from batchflow.errors import BlobConflict
from batchflow.pools import access, agent_archive, embedded_files
from batchflow.ports.compute import ResourceFile
from batchflow.protocol.documents import (
    AgentConfig,
    ContainerAccess,
    PoolManifest,
    QueueAccess,
)
from batchflow.support.frozen import frozen
from batchflow.support.task_groups import task_group

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from batchflow.files import BundleSource
    from batchflow.pools.connections import Connections
    from batchflow.ports.broker import QueueRef
    from batchflow.ports.storage import AccessPolicy, Container
    from batchflow.settings import Settings
    from batchflow.support.progress_report import Reporter

CONFIG_FILE: Final = "agent.json"
BOOTSTRAP_FILE: Final = "bootstrap.py"

_BEFORE_THE_END: Final = 3600.0
"""Seconds before the end of their signatures at which agents leave, so that others start with new ones."""


@frozen
class LaunchCommand:
    """How Batch starts an agent on a node."""

    command: str
    files: tuple[ResourceFile, ...]
    lasting: bool = True
    """Whether agents can be started so at any later time: no signature ends by the clock."""


@frozen
class LaunchContext:
    """The pool that agents are started on."""

    manifest: PoolManifest
    ctl: Container
    out: Container
    made_here: bool = False
    """By this very client, with the containers and their policies."""
    sources: Sequence[BundleSource] = ()
    """Files that are here."""


async def prepare(
    services: Connections, settings: Settings, ground: LaunchContext, report: Reporter
) -> LaunchCommand:
    """Bring to the pool's control container what its agents start from.

    Raises `ConfigurationError` when the agent's archive cannot be made. Safe to repeat.
    """
    manifest, ctl, out = ground.manifest, ground.ctl, ground.out
    async with task_group() as group:
        if manifest.identity is None and not ground.made_here:
            for container, policies in ((ctl, access.ctl_policies()), (out, access.out_policies())):
                # whoever made it had no key
                group.start_soon(services.storage.create_container, container.name, policies)
        config = await _write_config(services, settings, ground)
    await ctl.put(config.blob, config.data)
    source = await _source(services, manifest, ctl)
    files = [source.file(config.blob, CONFIG_FILE, mode="0600")]
    if settings.agent.python is not None:
        python = shlex.quote(settings.agent.python)
        return LaunchCommand(f"{python} -m node_agent --config {CONFIG_FILE}", tuple(files), source.lasting)
    agent = settings.agent
    report(f"making the agents' archive, for Python {agent.node_python} on {agent.node_platform}")
    archive = await agent_archive.build(
        agent.node_python, agent.node_platform, identity=manifest.identity is not None
    )
    blob = f"agent/{archive.name}"
    await _bring(ctl, blob, archive, report)
    script = agent_archive.bootstrap()
    script_blob = f"agent/{hashlib.sha256(script).hexdigest()}.py"
    await ctl.put(script_blob, script)
    files += [source.file(blob, archive.name), source.file(script_blob, BOOTSTRAP_FILE)]
    command = f"python3 {BOOTSTRAP_FILE} {archive.name} --config {CONFIG_FILE}"
    return LaunchCommand(command, tuple(files), source.lasting)


async def _bring(ctl: Container, blob: str, archive: Path, report: Reporter) -> None:
    """Upload an archive, unless it is there: its name is its content's."""
    if [info async for info in ctl.list(blob)]:
        return
    report(f"uploading the agents' archive, {archive.stat().st_size / 1e6:.0f} MB")
    with contextlib.suppress(BlobConflict):  # somebody else was quicker
        await ctl.upload(blob, archive, create=True)


@frozen
class _Source:
    """Where Batch gets the agents' files from: by a signature, or by the nodes' identity."""

    url: str
    signature: str | None = field(repr=False)
    identity: str | None

    @property
    def lasting(self) -> bool:
        return access.ends_at(self.signature) is None

    def file(self, blob: str, path: str, mode: str | None = None) -> ResourceFile:
        url = f"{self.url}/{blob}"
        return ResourceFile(
            url if self.signature is None else f"{url}?{self.signature}", path, mode, self.identity
        )


async def _source(services: Connections, manifest: PoolManifest, ctl: Container) -> _Source:
    if manifest.identity is not None:
        return _Source(ctl.url, None, manifest.identity.resource_id)
    return _Source(ctl.url, await services.storage.signature(ctl.name, access.ctl_policies()[0]), None)


@frozen
class _Config:
    blob: str
    data: bytes = field(repr=False)


async def _write_config(services: Connections, settings: Settings, ground: LaunchContext) -> _Config:
    """What agents know at their start: restricted keys, or only names where the nodes have an identity."""
    agent, manifest, ctl, out = settings.agent, ground.manifest, ground.ctl, ground.out
    task_queues, results_queues = manifest.task_queues, manifest.results_queues
    brought: dict[str, str] = {}
    async with task_group() as group:
        group.start_soon(embedded_files.pack, ctl, manifest.bundle, brought, ground.sources)
        of_out = await _container(services, manifest, out, access.out_policies()[0])
        accesses = await _access(services, manifest, (*task_queues, *results_queues))
    end = access.ends_at(of_out.signature)
    config = AgentConfig(
        leave_at=None if end is None else end - _BEFORE_THE_END,
        pool=manifest.pool,
        task_queues=accesses[: len(task_queues)],
        results_queues=accesses[len(task_queues) :],
        ctl=await _container(services, manifest, ctl, access.ctl_policies()[0]),
        out=of_out,
        lock_duration=manifest.lock_duration,
        slots=manifest.slots,
        identity=None if manifest.identity is None else manifest.identity.client_id,
        ca_file=settings.servicebus.ca_file,
        storage_ca_file=settings.storage.ca_file,
        websockets=settings.servicebus.websockets,
        idle_exit=agent.idle_exit or None,
        heartbeat_interval=agent.heartbeat_interval,
        drain_grace=agent.drain_grace,
        grace=agent.grace,
        child_tasks=agent.child_tasks,
        child_memory=agent.child_memory,
        process_limit=agent.process_limit,
        output_limit=agent.output_limit,
        result_limit=agent.result_limit,
        cache_limit=agent.cache_limit,
        bundle=manifest.bundle,
        brought=brought,
    )
    data = config.encode()
    return _Config(f"agent/{hashlib.sha256(data).hexdigest()}.json", data)


async def _container(
    services: Connections, manifest: PoolManifest, container: Container, policy: AccessPolicy
) -> ContainerAccess:
    if manifest.identity is not None:
        return ContainerAccess(container.url)
    return ContainerAccess(container.url, await services.storage.signature(container.name, policy))


async def _access(
    services: Connections, manifest: PoolManifest, queues: tuple[QueueRef, ...]
) -> tuple[QueueAccess, ...]:
    if manifest.identity is not None:
        return tuple(QueueAccess(queue) for queue in queues)
    rule = access.AGENT_RULE
    keys: dict[QueueRef, str] = {}

    async def ask(queue: QueueRef) -> None:
        keys[queue] = await services.admin_of(queue).connection_string(queue.entity, rule)

    async with task_group() as group:
        for queue in queues:
            group.start_soon(ask, queue)
    return tuple(QueueAccess(queue, keys[queue]) for queue in queues)
