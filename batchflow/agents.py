"""Agents onto nodes: the Batch job that hosts one agent task for each node of a pool."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from batchflow import agentpackage
from batchflow.compute import BatchTask, BatchTaskInfo, ResourceFile
from batchflow.control import (
    AgentConfig,
    ContainerAccess,
    Heartbeat,
    PoolManifest,
    QueueAccess,
)
from batchflow.errors import BlobConflict, BlobNotFound, ProtocolError

if TYPE_CHECKING:
    from batchflow.broker import QueueRef
    from batchflow.services import Services
    from batchflow.settings import Settings
    from batchflow.storage import Container

CTL_POLICY: Final = "agent-ctl"
OUT_POLICY: Final = "agent-out"
AGENT_RULE: Final = "agent"
"""The names of the agents' rights on containers and queues."""
CONFIG_FILE: Final = "agent.json"
BOOTSTRAP_FILE: Final = "bootstrap.py"

_KEPT_JOBS: Final = 10
"""Ended jobs of agents that go with their pool; older ones are left to Batch."""
_FRESH: Final = 3
"""A heartbeat older than so many of its own intervals is an agent's last."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How Batch starts an agent on a node."""

    command: str
    files: tuple[ResourceFile, ...]


async def prepare(
    services: Services, settings: Settings, manifest: PoolManifest, ctl: Container, out: Container
) -> Launch:
    """Bring to the pool's control container what its agents start from.

    Raises `ConfigurationError` when the agent's archive cannot be made. Safe to repeat.
    """
    signature = services.storage.signature(ctl.name, CTL_POLICY)
    access = ContainerAccess(ctl.url, signature)
    config = await _write_config(services, settings, manifest, access, out)
    await ctl.put(config.blob, config.data)
    files = [_resource(access, config.blob, CONFIG_FILE, mode="0600")]
    if settings.agent.python is not None:
        python = shlex.quote(settings.agent.python)
        return Launch(f"{python} -m node_agent --config {CONFIG_FILE}", tuple(files))
    archive = await agentpackage.build(settings.agent.node_python, settings.agent.node_platform)
    blob = f"agent/{archive.name}"
    with contextlib.suppress(BlobConflict):  # it is there already
        await ctl.upload(blob, archive, create=True)
    script = agentpackage.bootstrap()
    script_blob = f"agent/{hashlib.sha256(script).hexdigest()}.py"
    await ctl.put(script_blob, script)
    files += [_resource(access, blob, archive.name), _resource(access, script_blob, BOOTSTRAP_FILE)]
    return Launch(f"python3 {BOOTSTRAP_FILE} {archive.name} --config {CONFIG_FILE}", tuple(files))


def _resource(access: ContainerAccess, blob: str, path: str, mode: str | None = None) -> ResourceFile:
    return ResourceFile(f"{access.url}/{blob}?{access.signature}", path, mode)


@dataclass(frozen=True, slots=True)
class _Config:
    blob: str
    data: bytes = field(repr=False)


async def _write_config(
    services: Services, settings: Settings, manifest: PoolManifest, ctl: ContainerAccess, out: Container
) -> _Config:
    """What agents know at their start, with their restricted keys."""
    agent = settings.agent
    config = AgentConfig(
        pool=manifest.pool,
        task_queues=await _access(services, manifest.task_queues),
        results_queues=await _access(services, manifest.results_queues),
        ctl=ctl,
        out=ContainerAccess(out.url, services.storage.signature(out.name, OUT_POLICY)),
        lock_duration=manifest.lock_duration,
        slots=manifest.slots,
        ca_file=settings.servicebus.ca_file,
        websockets=settings.servicebus.websockets,
        idle_exit=agent.idle_exit or None,
        heartbeat_interval=agent.heartbeat_interval,
        drain_grace=agent.drain_grace,
        grace=agent.grace,
        child_tasks=agent.child_tasks,
        child_memory=agent.child_memory,
        output_limit=agent.output_limit,
        result_limit=agent.result_limit,
        cache_limit=agent.cache_limit,
    )
    data = config.encode()
    return _Config(f"agent/{hashlib.sha256(data).hexdigest()}.json", data)


async def _access(services: Services, queues: tuple[QueueRef, ...]) -> tuple[QueueAccess, ...]:
    return tuple(
        [
            QueueAccess(queue, await services.admin.connection_string(queue.entity, AGENT_RULE))
            for queue in queues
        ]
    )


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
    beats: list[Heartbeat] = []
    async for info in out.list("agents/"):
        try:
            beat = Heartbeat.decode((await out.get(info.name)).data)
        except (BlobNotFound, ProtocolError):
            continue  # gone meanwhile, or of another version: no agent that we can count on
        if not fresh_only or is_fresh(beat, info.age):
            beats.append(beat)
    return beats


def is_fresh(beat: Heartbeat, age: float) -> bool:
    """Whether the agent lives, as far as its heartbeat tells; `age`: seconds, by the storage's clock."""
    return beat.state != "exiting" and age < beat.interval * _FRESH


def generations(manifest: PoolManifest) -> list[str]:
    """The agents' job and its last predecessors, which Batch keeps after they ended."""
    stem, _, number = manifest.agents_job.rpartition("-")
    return [f"{stem}-{each}" for each in range(max(1, int(number) - _KEPT_JOBS + 1), int(number) + 1)]


def next_generation(manifest: PoolManifest) -> PoolManifest:
    """The manifest with a new name for the agents' job: a Batch job that has ended cannot be used again."""
    stem, _, number = manifest.agents_job.rpartition("-")
    return replace(manifest, agents_job=f"{stem}-{int(number) + 1}")
