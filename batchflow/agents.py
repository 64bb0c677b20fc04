"""Agents onto nodes: the Batch job that hosts one agent task for each node of a pool."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
from dataclasses import field, replace
from typing import TYPE_CHECKING, Final

import anyio

from batchflow import access, agentpackage, luggage
from batchflow.compute import BatchTask, BatchTaskInfo, ResourceFile
from batchflow.concurrency import task_group
from batchflow.control import (
    AgentConfig,
    ContainerAccess,
    Heartbeat,
    PoolManifest,
    QueueAccess,
    gone_after,
)
from batchflow.errors import BlobConflict, BlobNotFound, ProtocolError
from batchflow.frozen import frozen
from batchflow.packing import open_slots

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from batchflow.broker import QueueRef
    from batchflow.reporting import Reporter
    from batchflow.services import Services
    from batchflow.settings import Settings
    from batchflow.sources import Source
    from batchflow.storage import AccessPolicy, BlobInfo, Container

CONFIG_FILE: Final = "agent.json"
BOOTSTRAP_FILE: Final = "bootstrap.py"

_BEFORE_THE_END: Final = 3600.0
"""Seconds before the end of their signatures at which agents leave, so that others start with new ones."""
_KEPT_JOBS: Final = 10
"""Ended jobs of agents that go with their pool; older ones are left to Batch."""
_SAMPLE: Final = 64
"""Heartbeats that a session reads at a look: a thousand of them, every five seconds, would be all it does."""
_READS: Final = 16
"""Documents that are read at once."""


@frozen
class Launch:
    """How Batch starts an agent on a node."""

    command: str
    files: tuple[ResourceFile, ...]
    lasting: bool = True
    """Whether agents can be started so at any later time: no signature ends by the clock."""


@frozen
class Ground:
    """The pool that agents are started on."""

    manifest: PoolManifest
    ctl: Container
    out: Container
    made_here: bool = False
    """By this very client, with the containers and their policies."""
    sources: Sequence[Source] = ()
    """Files that are here."""


async def prepare(services: Services, settings: Settings, ground: Ground, report: Reporter) -> Launch:
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
        return Launch(f"{python} -m node_agent --config {CONFIG_FILE}", tuple(files), source.lasting)
    agent = settings.agent
    report(f"making the agents' archive, for Python {agent.node_python} on {agent.node_platform}")
    archive = await agentpackage.build(
        agent.node_python, agent.node_platform, identity=manifest.identity is not None
    )
    blob = f"agent/{archive.name}"
    await _bring(ctl, blob, archive, report)
    script = agentpackage.bootstrap()
    script_blob = f"agent/{hashlib.sha256(script).hexdigest()}.py"
    await ctl.put(script_blob, script)
    files += [source.file(blob, archive.name), source.file(script_blob, BOOTSTRAP_FILE)]
    command = f"python3 {BOOTSTRAP_FILE} {archive.name} --config {CONFIG_FILE}"
    return Launch(command, tuple(files), source.lasting)


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


async def _source(services: Services, manifest: PoolManifest, ctl: Container) -> _Source:
    if manifest.identity is not None:
        return _Source(ctl.url, None, manifest.identity.resource_id)
    return _Source(ctl.url, await services.storage.signature(ctl.name, access.ctl_policies()[0]), None)


@frozen
class _Config:
    blob: str
    data: bytes = field(repr=False)


async def _write_config(services: Services, settings: Settings, ground: Ground) -> _Config:
    """What agents know at their start: restricted keys, or only names where the nodes have an identity."""
    agent, manifest, ctl, out = settings.agent, ground.manifest, ground.ctl, ground.out
    task_queues, results_queues = manifest.task_queues, manifest.results_queues
    brought: dict[str, str] = {}
    async with task_group() as group:
        group.start_soon(luggage.pack, ctl, manifest.bundle, brought, ground.sources)
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
    services: Services, manifest: PoolManifest, container: Container, policy: AccessPolicy
) -> ContainerAccess:
    if manifest.identity is not None:
        return ContainerAccess(container.url)
    return ContainerAccess(container.url, await services.storage.signature(container.name, policy))


async def _access(
    services: Services, manifest: PoolManifest, queues: tuple[QueueRef, ...]
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


def agent_tasks(
    launch: Launch, first: int, count: int, task_slots: int, container: str | None = None
) -> list[BatchTask]:
    """The Batch tasks that are agents, each filling its node."""
    return [
        BatchTask(
            f"agent-{number}",
            launch.command,
            files=launch.files,
            slots=task_slots,
            retries=-1,
            container=container,
        )
        for number in range(first, first + count)
    ]


def next_number(tasks: list[BatchTaskInfo]) -> int:
    """The number of the next agent: above all that there are, for one may have been deleted."""
    return max((int(task.id.rpartition("-")[2]) for task in tasks), default=-1) + 1


async def read_heartbeats(out: Container, fresh_only: bool = True) -> list[Heartbeat]:
    """What the pool's agents last said of themselves."""
    infos = [info async for info in out.list("agents/")]
    found = await _read_beats(out, infos)
    return [beat for beat, info in found if not fresh_only or is_fresh(beat, info.age)]


@frozen
class Sample:
    """The heartbeats of some of the living agents, and how many of these there are."""

    beats: list[Heartbeat]
    alive: int

    @property
    def open_slots(self) -> int:
        """That short tasks can count on, over all agents: what the sample tells stands for the others."""
        return round(open_slots(self.beats) * self.alive / len(self.beats)) if self.beats else 0


async def sample_heartbeats(out: Container, most: int = _SAMPLE) -> Sample:
    """What some of the agents say, for a look every few seconds: at most so many documents are read."""
    infos = sorted([info async for info in out.list("agents/")], key=lambda info: info.age)
    found = await _read_beats(out, infos[:most])
    beats = [beat for beat, info in found if is_fresh(beat, info.age)]
    limit = max((gone_after(beat.interval) for beat in beats), default=0.0)
    unread = sum(info.age < limit for info in infos[most:])
    return Sample(beats, len(beats) + unread)


async def _read_beats(out: Container, infos: list[BlobInfo]) -> list[tuple[Heartbeat, BlobInfo]]:
    found: dict[str, Heartbeat] = {}
    limiter = anyio.CapacityLimiter(_READS)

    async def read(name: str) -> None:
        async with limiter:
            try:
                found[name] = Heartbeat.decode((await out.get(name)).data)
            except (BlobNotFound, ProtocolError):
                return  # gone meanwhile, or of another version: no agent that we can count on

    async with task_group() as group:
        for info in infos:
            group.start_soon(read, info.name)
    return [(found[info.name], info) for info in infos if info.name in found]


def is_fresh(beat: Heartbeat, age: float) -> bool:
    """Whether the agent lives, as far as its heartbeat tells; `age`: seconds, by the storage's clock."""
    return beat.state != "exiting" and age < gone_after(beat.interval)


def generations(manifest: PoolManifest) -> list[str]:
    """The agents' job and its last predecessors, which Batch keeps after they ended."""
    stem, _, number = manifest.agents_job.rpartition("-")
    return [f"{stem}-{each}" for each in range(max(1, int(number) - _KEPT_JOBS + 1), int(number) + 1)]


def next_generation(manifest: PoolManifest) -> PoolManifest:
    """The manifest with a new name for the agents' job: a Batch job that has ended cannot be used again."""
    stem, _, number = manifest.agents_job.rpartition("-")
    return replace(manifest, agents_job=f"{stem}-{int(number) + 1}")
