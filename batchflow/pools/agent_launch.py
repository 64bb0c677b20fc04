"""What a node starts an agent from: its configuration, its archive, and the command line."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
from dataclasses import field, fields
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from batchflow.environments.session import target_of
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
from batchflow.support.setting_groups.agent_limits import AgentLimits
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

_IDLE_EXIT: Final = 1800.0
_IDLE_EXIT_IF_ELASTIC: Final = 600.0
"""Seconds without a task after which an agent exits by default."""
_BEFORE_THE_END: Final = 3600.0
"""Seconds before the end of their signatures at which agents leave; the next ones get new signatures."""


@frozen
class LaunchCommand:
    """How Batch starts an agent on a node."""

    command: str
    files: tuple[ResourceFile, ...]
    lasting: bool = True
    """Whether agents can be started so at any later time: no signature ends by the clock."""


@frozen
class LaunchContext:
    """What the start of agents needs to know of their pool."""

    manifest: PoolManifest
    ctl: Container
    out: Container
    made_here: bool = False
    """Whether this client created the pool, and so the containers with their policies."""
    sources: Sequence[BundleSource] = ()
    """Files of the default bundle that this client has, so that they need not be fetched."""
    agents: int = 1
    """Number of agents that there may be."""


async def prepare(
    connections: Connections, settings: Settings, context: LaunchContext, report: Reporter
) -> LaunchCommand:
    """Upload what the pool's agents start from to its control container.

    Raises `ConfigurationError` when the agent's archive cannot be made. Safe to repeat.
    """
    manifest, ctl, out = context.manifest, context.ctl, context.out
    async with task_group() as group:
        if manifest.identity is None and not context.made_here:
            for container, policies in ((ctl, access.ctl_policies()), (out, access.out_policies())):
                # the creator of the pool may have had no key, and then made no policies
                group.start_soon(connections.storage.create_container, container.name, policies)
        config = await _write_config(connections, settings, context)
    await ctl.put(config.blob, config.data)
    source = await _source(connections, manifest, ctl)
    files = [source.file(config.blob, CONFIG_FILE, mode="0600")]
    if settings.agent.python is not None and manifest.interpreter is None:
        python = shlex.quote(settings.agent.python)
        return LaunchCommand(f"{python} -m node_agent --config {CONFIG_FILE}", tuple(files), source.lasting)
    target = target_of(settings.agent, manifest.python, carried=manifest.interpreter is not None)
    report(f"making the agents' archive, for Python {target.python} on {target.platform}")
    archive = await agent_archive.build(
        target.python, target.platform, identity=manifest.identity is not None
    )
    blob = f"agent/{archive.name}"
    await _upload_archive(ctl, blob, archive, report)
    script = agent_archive.bootstrap()
    script_blob = f"agent/{hashlib.sha256(script).hexdigest()}.py"
    await ctl.put(script_blob, script)
    files += [source.file(blob, archive.name), source.file(script_blob, BOOTSTRAP_FILE)]
    command = f"python3 {BOOTSTRAP_FILE} {archive.name}"
    if manifest.interpreter is not None:
        name = PurePosixPath(manifest.interpreter).name
        files.append(source.file(manifest.interpreter, name))
        command += f" --python {name}"
    command += f" --config {CONFIG_FILE}"
    return LaunchCommand(command, tuple(files), source.lasting)


async def _upload_archive(ctl: Container, blob: str, archive: Path, report: Reporter) -> None:
    """Upload the archive unless it is there already: its name tells its content."""
    if [info async for info in ctl.list(blob)]:
        return
    report(f"uploading the agents' archive, {archive.stat().st_size / 1e6:.0f} MB")
    with contextlib.suppress(BlobConflict):  # another client was quicker
        await ctl.upload(blob, archive, create=True)


@frozen
class _Source:
    """Where Batch downloads the agents' files from: by a signature, or by the nodes' identity."""

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


async def _source(connections: Connections, manifest: PoolManifest, ctl: Container) -> _Source:
    if manifest.identity is not None:
        return _Source(ctl.url, None, manifest.identity.resource_id)
    return _Source(ctl.url, await connections.storage.signature(ctl.name, access.ctl_policies()[0]), None)


@frozen
class _Config:
    blob: str
    data: bytes = field(repr=False)


async def _write_config(connections: Connections, settings: Settings, context: LaunchContext) -> _Config:
    """Make the agents' configuration: with restricted keys, or with names where nodes have an identity."""
    agent, manifest, ctl, out = settings.agent, context.manifest, context.ctl, context.out
    task_queues, results_queues = manifest.task_queues, manifest.results_queues
    embedded: dict[str, str] = {}
    async with task_group() as group:
        group.start_soon(embedded_files.pack, ctl, manifest.bundle, embedded, context.sources)
        of_out = await _container(connections, manifest, out, access.out_policies()[0])
        accesses = await _access(connections, manifest, (*task_queues, *results_queues))
    end = access.ends_at(of_out.signature)
    config = AgentConfig(
        leave_at=None if end is None else end - _BEFORE_THE_END,
        pool=manifest.pool,
        task_queues=accesses[: len(task_queues)],
        results_queues=accesses[len(task_queues) :],
        ctl=await _container(connections, manifest, ctl, access.ctl_policies()[0]),
        out=of_out,
        lock_duration=manifest.lock_duration,
        slots=manifest.slots,
        lanes=manifest.lanes,
        tags=manifest.tags,
        identity=None if manifest.identity is None else manifest.identity.client_id,
        ca_file=settings.servicebus.ca_file,
        storage_ca_file=settings.storage.ca_file,
        websockets=settings.servicebus.websockets,
        idle_exit=idle_exit(agent.idle_exit, elastic=manifest.elastic is not None),
        bundle=manifest.bundle,
        brought=embedded,
        budget=manifest.budget,
        agents=context.agents,
        **{item.name: getattr(agent, item.name) for item in fields(AgentLimits)},
    )
    data = config.encode()
    return _Config(f"agent/{hashlib.sha256(data).hexdigest()}.json", data)


def idle_exit(setting: float | None, *, elastic: bool) -> float | None:
    """Return the seconds without a task after which an agent exits; None: never.

    `setting`: the setting `agent.idle_exit`; None: the default. Agents of an elastic pool always exit.
    """
    if elastic:
        return setting or _IDLE_EXIT_IF_ELASTIC
    return _IDLE_EXIT if setting is None else setting or None


async def _container(
    connections: Connections, manifest: PoolManifest, container: Container, policy: AccessPolicy
) -> ContainerAccess:
    if manifest.identity is not None:
        return ContainerAccess(container.url)
    return ContainerAccess(container.url, await connections.storage.signature(container.name, policy))


async def _access(
    connections: Connections, manifest: PoolManifest, queues: tuple[QueueRef, ...]
) -> tuple[QueueAccess, ...]:
    if manifest.identity is not None:
        return tuple(QueueAccess(queue) for queue in queues)
    rule = access.AGENT_RULE
    keys: dict[QueueRef, str] = {}

    async def ask(queue: QueueRef) -> None:
        keys[queue] = await connections.admin_of(queue).connection_string(queue.entity, rule)

    async with task_group() as group:
        for queue in queues:
            group.start_soon(ask, queue)
    return tuple(QueueAccess(queue, keys[queue]) for queue in queues)
