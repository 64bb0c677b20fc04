"""The three services in memory, as a client sees them, with faults where a test asks for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from batchflow.errors import PoolError, PoolExists, PoolNotFound, StorageError
from batchflow.local.batch.core.autoscale import evaluate
from batchflow.local.batch.core.formula_values import FormulaFacts
from batchflow.model import Image
from batchflow.pools.connections import Connections
from batchflow.ports.compute import BatchTask, BatchTaskInfo, NodeInfo, PoolDocument, PoolInfo, SupportedImage
from batchflow.ports.storage import Blob, BlobInfo
from batchflow.session import Session
from batchflow.settings import (
    AgentSettings,
    BatchSettings,
    ServiceBusSettings,
    SessionSettings,
    Settings,
    StorageSettings,
)
from batchflow.testing import MemoryContainer, MemoryStorage
from tests.support.broker import ScriptedBroker
from tests.support.clock import Clock
from tests.support.session_parts import parts_of
from tests.support.waiting import eventually


async def until_empty(session: Session, but: int = 0) -> None:
    """Return when all of the session's messages, but so many, were completed."""
    runtime = parts_of(session).context.runtime
    broker, (queue,) = runtime.connections.admin, runtime.manifest.results_queues

    async def is_empty() -> bool:
        return (await broker.figures(queue.entity)).active <= but

    await eventually(is_empty)


def settings(**session: Any) -> Settings:
    """Return the settings of a connected client, with short times."""
    return Settings(
        batch=BatchSettings("account", "key", "https://account.example"),
        storage=StorageSettings("storage"),
        servicebus=ServiceBusSettings("bus"),
        agent=AgentSettings(python="python3", heartbeat_interval=0.1),
        session=SessionSettings(**{"close_timeout": 20.0, "presence_interval": 0.2, **session}),
    )


class ScriptedContainer(MemoryContainer):
    """A container that notes what is read and written and fails as it is told."""

    def __init__(self, storage: ScriptedStorage, name: str) -> None:
        super().__init__(storage, name)
        self._scripted = storage

    async def get(self, name: str) -> Blob:
        await self._scripted.pass_by("get", name)
        return await super().get(name)

    async def get_if_changed(self, name: str, etag: str | None) -> Blob | None:
        await self._scripted.pass_by("get_if_changed", name)
        return await super().get_if_changed(name, etag)

    async def put(self, name: str, data: bytes, *, if_match: str | None = None, create: bool = False) -> str:
        await self._scripted.pass_by("put", name)
        return await super().put(name, data, if_match=if_match, create=create)

    async def delete(self, name: str, *, if_match: str | None = None) -> bool:
        await self._scripted.pass_by("delete", name)
        return await super().delete(name, if_match=if_match)

    async def list(self, prefix: str = "") -> AsyncIterator[BlobInfo]:
        await self._scripted.pass_by("list", prefix)
        async for info in super().list(prefix):
            yield info


class ScriptedStorage(MemoryStorage):
    """Storage with faults, by the beginning of a blob's name."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.calls: list[tuple[str, str]] = []
        self.faults: dict[tuple[str, str], list[StorageError]] = {}
        self.gates: dict[tuple[str, str], asyncio.Event] = {}

    async def pass_by(self, verb: str, name: str) -> None:
        self.calls.append((verb, name))
        for (which, prefix), gate in self.gates.items():
            if which == verb and name.startswith(prefix):
                await gate.wait()
        for (which, prefix), faults in self.faults.items():
            if which == verb and name.startswith(prefix) and faults:
                raise faults.pop(0)

    def container(self, name: str) -> ScriptedContainer:
        return ScriptedContainer(self, name)

    async def write(self, name: str, data: bytes, container: str) -> None:
        """Write a blob past all faults."""
        await MemoryContainer(self, container).put(name, data)

    def names(self, prefix: str) -> list[str]:
        """List the blobs of all containers whose names begin so."""
        return sorted(n for blobs in self.content.values() for n in blobs if n.startswith(prefix))


class MemoryCompute:
    """Batch in memory: pools that are all there at once, tasks that never end by themselves."""

    def __init__(self) -> None:
        self.known: dict[str, PoolInfo] = {}
        self.jobs: dict[str, list[BatchTask]] = {}
        self.node_infos: list[NodeInfo] = []
        self.fault: PoolError | None = None
        self.formulas: list[str] = []
        """The formulas that were to be set."""
        self.refuses_formulas = False
        """Whether the pools resize, so that no formula is taken."""
        self.containers = False
        """Whether nodes can run them."""

    def _check(self) -> None:
        if self.fault is not None:
            raise self.fault

    async def create_pool(self, document: PoolDocument) -> None:
        self._check()
        if document.id.lower() in self.known:
            raise PoolExists(f"pool {document.id} exists")
        fixed = document.formula is None
        nodes, spot = (document.nodes, document.spot) if fixed else (0, 0)
        self.known[document.id.lower()] = PoolInfo(
            id=document.id,
            state="active",
            allocation="steady",
            vm_size=document.vm_size,
            nodes=nodes,
            wanted=nodes,
            spot=spot,
            spot_wanted=spot,
            task_slots=document.task_slots,
            metadata=document.metadata,
            autoscale=not fixed,
            formula=document.formula,
        )

    async def pool(self, pool_id: str) -> PoolInfo:
        self._check()
        try:
            return self.known[pool_id.lower()]
        except KeyError:
            raise PoolNotFound(f"there is no pool {pool_id}") from None

    async def pools(self) -> AsyncIterator[PoolInfo]:
        for info in self.known.values():
            yield info

    async def images(self) -> list[SupportedImage]:
        image = Image()
        able = self.containers
        return [
            SupportedImage(
                image.publisher, image.offer, image.sku, "batch.node.ubuntu 24.04", containers=able
            )
        ]

    async def enable_autoscale(self, pool_id: str, formula: str, interval: float) -> bool:
        """Take the formula, unless `refuses_formulas`; the size is what it says now."""
        info = await self.pool(pool_id)
        self.formulas.append(formula)
        if self.refuses_formulas:
            return False
        facts = FormulaFacts(time.time(), info.wanted, info.spot_wanted)
        targets = evaluate(formula, facts)
        nodes, spot = targets.dedicated or 0, targets.spot or 0
        self.known[pool_id.lower()] = replace(
            info, nodes=nodes, wanted=nodes, spot=spot, spot_wanted=spot, autoscale=True, formula=formula
        )
        return True

    async def disable_autoscale(self, pool_id: str) -> None:
        info = await self.pool(pool_id)
        self.known[pool_id.lower()] = replace(info, autoscale=False, formula=None)

    async def resize_pool(self, pool_id: str, nodes: int, spot: int) -> None:
        info = await self.pool(pool_id)
        self.known[pool_id.lower()] = replace(info, nodes=nodes, wanted=nodes, spot=spot, spot_wanted=spot)

    async def stop_resize(self, pool_id: str) -> None:
        """Leave the pool at the nodes that it has; formulas are taken again."""
        info = await self.pool(pool_id)
        self.known[pool_id.lower()] = replace(info, allocation="steady")
        self.refuses_formulas = False

    async def remove_nodes(self, pool_id: str, node_ids: Sequence[str]) -> None:
        info = await self.pool(pool_id)
        self.node_infos = [node for node in self.node_infos if node.id not in node_ids]
        left = info.wanted - len(node_ids)
        self.known[pool_id.lower()] = replace(info, nodes=left, wanted=left)

    async def reboot_node(self, pool_id: str, node_id: str) -> None:
        await self.pool(pool_id)

    async def node_output(self, pool_id: str, node_id: str, path: str, tail: int = 4096) -> str:
        return ""

    async def change_start_task(self, document: PoolDocument) -> None:
        info = await self.pool(document.id)
        self.known[document.id.lower()] = replace(info, start_command=document.start_command)

    async def delete_pool(self, pool_id: str) -> bool:
        return self.known.pop(pool_id.lower(), None) is not None

    async def nodes(self, pool_id: str) -> list[NodeInfo]:
        await self.pool(pool_id)
        return self.node_infos

    async def create_job(self, job_id: str, pool_id: str) -> bool:
        self._check()
        made = job_id not in self.jobs
        self.jobs.setdefault(job_id, [])
        return made

    async def add_tasks(self, job_id: str, tasks: Sequence[BatchTask]) -> None:
        self.jobs[job_id] += tasks

    async def end_job_when_idle(self, job_id: str) -> None:
        assert job_id in self.jobs

    async def tasks(self, job_id: str) -> list[BatchTaskInfo]:
        self._check()
        return [BatchTaskInfo(task.id, "running") for task in self.jobs.get(job_id, [])]

    async def delete_task(self, job_id: str, task_id: str) -> bool:
        before = self.jobs.get(job_id, [])
        self.jobs[job_id] = [task for task in before if task.id != task_id]
        return len(before) != len(self.jobs[job_id])

    async def task_output(self, job_id: str, task_id: str, name: str, tail: int = 4096) -> str:
        return ""

    async def delete_job(self, job_id: str) -> bool:
        return self.jobs.pop(job_id, None) is not None

    async def aclose(self) -> None:
        pass


class Doubles:
    """The three services."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.broker = ScriptedBroker(self.clock)
        self.storage = ScriptedStorage(self.clock)
        self.compute = MemoryCompute()

    @property
    def services(self) -> Connections:
        return Connections(self.broker, self.broker, self.storage, self.compute)  # type: ignore[arg-type]
