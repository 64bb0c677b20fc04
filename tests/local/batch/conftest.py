"""A Batch server on loopback, and the real SDK in front of it."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from azure.batch import models
from azure.batch.aio import BatchClient
from azure.core.credentials import AzureNamedKeyCredential

from batchflow.local.batch.server import BatchServer
from tests.support.batch_sdk import pool_options
from tests.support.contract import Contract, at_hand
from tests.support.waiting import eventually_equal

ACCOUNT = "local"
KEY = base64.b64encode(b"batch" * 8).decode()
PATIENCE = 30.0


def state_of(entity: models.BatchTask | models.BatchNode) -> str:
    """Return an entity's state as the wire has it."""
    assert isinstance(entity.state, Enum)
    return str(entity.state.value)


@dataclass
class Batch:
    """A server and a client of it, with what tests do often."""

    server: BatchServer
    client: BatchClient
    root: Path
    key: str = KEY
    """The account's key."""
    contract: Contract | None = None
    """Of requests that tests send by hand; None where the specifications are not at hand."""

    async def pool(
        self, pool_id: str = "pool", nodes: int = 1, *, ready: bool = True, **options: Any
    ) -> None:
        """Make a pool; when `ready`, wait until its nodes are idle."""
        await self.client.create_pool(pool_options(pool_id, nodes, **options))
        if ready:
            await self.until(lambda: self.node_states(pool_id), ["idle"] * nodes)

    async def job(self, job_id: str = "job", pool_id: str = "pool", **options: Any) -> None:
        """Make a job."""
        pool_info = models.BatchPoolInfo(pool_id=pool_id)
        await self.client.create_job(models.BatchJobCreateOptions(id=job_id, pool_info=pool_info, **options))

    async def task(self, task_id: str, command: str, *, job_id: str = "job", **options: Any) -> None:
        """Add a task."""
        options = {"id": task_id, "command_line": command, **options}
        await self.client.create_task(job_id, models.BatchTaskCreateOptions(**options))

    async def run(self, task_id: str, command: str, **options: Any) -> models.BatchTask:
        """Add a task and wait until it is complete."""
        await self.task(task_id, command, **options)
        return await self.until_task(task_id, "completed")

    async def until_task(self, task_id: str, state: str, *, job_id: str = "job") -> models.BatchTask:
        """The task, when it is in that state."""
        await self.until(lambda: self.task_state(task_id, job_id), state)
        return await self.client.get_task(job_id, task_id)

    async def task_state(self, task_id: str, job_id: str = "job") -> str:
        """The task's state, as the wire has it."""
        return state_of(await self.client.get_task(job_id, task_id))

    async def node_states(self, pool_id: str = "pool") -> list[str]:
        """The states of a pool's nodes, as the wire has them."""
        return [state_of(node) async for node in self.client.list_nodes(pool_id)]

    async def output(self, task_id: str, name: str = "stdout.txt", *, job_id: str = "job") -> str:
        """A file of a task."""
        chunks = await self.client.download_task_file(job_id, task_id, name)
        return b"".join([chunk async for chunk in chunks]).decode()

    async def until(self, look: Callable[[], Awaitable[Any]], wanted: Any) -> None:
        """Wait until a look at the service shows what is wanted."""
        await eventually_equal(look, wanted, pause=0.01)


@pytest.fixture
async def batch_with(tmp_path: Path, contract: Contract) -> AsyncIterator[Callable[..., Awaitable[Batch]]]:
    """Makes a server with settings of the test's own, and a client of it."""
    async with AsyncExitStack() as stack:

        async def make(*, key: str = KEY, api_version: str | None = None, **settings: Any) -> Batch:
            server = BatchServer(account=ACCOUNT, key=KEY, root=tmp_path, **settings)
            await server.start()
            stack.push_async_callback(server.aclose)
            options: dict[str, Any] = {"retry_total": 0}
            if api_version is not None:
                options["api_version"] = api_version
            client = BatchClient(server.url, AzureNamedKeyCredential(ACCOUNT, key), **options)
            await stack.enter_async_context(client)
            return Batch(server, client, tmp_path, contract=contract if at_hand() else None)

        yield make


@pytest.fixture
async def batch(batch_with: Callable[..., Awaitable[Batch]]) -> Batch:
    """A server with the default settings, and a client of it."""
    return await batch_with(stop_grace=0.5)


@dataclass
class Site:
    """An HTTP server with files, as Blob is to a node."""

    url: str
    files: dict[str, bytes]
    requests: list[str]
    failures: dict[str, list[int]]


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """Serves `files` by path, the statuses in `failures` first; only requests with `sig=good` are allowed."""
    served = Site("", {}, [], {})

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        served.requests.append(request.raw_path)
        if request.query.get("sig") != "good":
            return web.Response(status=403)
        if request.query.get("comp") == "list":
            return web.Response(text=listing(request.query.get("prefix", "")), content_type="application/xml")
        if served.failures.get(request.path):
            return web.Response(status=served.failures[request.path].pop(0))
        body = served.files.get(request.path)
        return web.Response(status=404) if body is None else web.Response(body=body)

    def listing(prefix: str) -> str:
        names = sorted(path.split("/", 2)[2] for path in served.files)
        blobs = "".join(f"<Blob><Name>{name}</Name></Blob>" for name in names if name.startswith(prefix))
        return f"<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker/></EnumerationResults>"

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    served.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield served
    await runner.cleanup()
