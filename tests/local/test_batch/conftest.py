"""A Batch server on loopback, the real SDK in front of it, and the published contract in between.

Every JSON body that crosses the client is checked against the Swagger definitions of the Batch data plane and
against the models of the SDK's own api-version, where the specifications are at hand.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from azure.batch import models
from azure.batch.aio import BatchClient
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.pipeline import PipelineRequest, PipelineResponse
from azure.core.pipeline.policies import AsyncHTTPPolicy
from jsonschema import Draft4Validator, Draft202012Validator

from batchflow.local.batch.server import BatchServer

ACCOUNT = "local"
KEY = base64.b64encode(b"batch" * 8).decode()
SPECS = Path(__file__).parents[4] / "shared" / "specs"
PATIENCE = 30.0

REQUEST_MODELS = {
    "POST pools": "BatchPoolCreateOptions",
    "PATCH pools/*": "BatchPoolUpdateOptions",
    "POST pools/*/resize": "BatchPoolResizeOptions",
    "POST pools/*/removenodes": "BatchNodeRemoveOptions",
    "POST pools/*/updateproperties": "BatchPoolReplaceOptions",
    "POST pools/*/nodes/*/reboot": "BatchNodeRebootOptions",
    "POST pools/*/nodes/*/reimage": "BatchNodeReimageOptions",
    "POST pools/*/nodes/*/deallocate": "BatchNodeDeallocateOptions",
    "POST pools/*/nodes/*/disablescheduling": "BatchNodeDisableSchedulingOptions",
    "POST jobs": "BatchJobCreateOptions",
    "PATCH jobs/*": "BatchJobUpdateOptions",
    "PUT jobs/*": "BatchJob",
    "POST jobs/*/terminate": "BatchJobTerminateOptions",
    "POST jobs/*/disable": "BatchJobDisableOptions",
    "POST jobs/*/tasks": "BatchTaskCreateOptions",
    "POST jobs/*/addtaskcollection": "BatchTaskGroup",
}
RESPONSE_MODELS = {
    "GET pools": "BatchPool",
    "GET pools/*": "BatchPool",
    "GET nodecounts": "BatchPoolNodeCounts",
    "GET supportedimages": "BatchSupportedImage",
    "GET pools/*/nodes": "BatchNode",
    "GET pools/*/nodes/*": "BatchNode",
    "GET pools/*/nodes/*/files": "BatchNodeFile",
    "GET jobs": "BatchJob",
    "GET jobs/*": "BatchJob",
    "GET jobs/*/taskcounts": "BatchTaskCountsResult",
    "POST jobs/*/addtaskcollection": "BatchTaskCreateResult",
    "GET jobs/*/tasks": "BatchTask",
    "GET jobs/*/tasks/*": "BatchTask",
    "GET jobs/*/tasks/*/files": "BatchNodeFile",
}


@cache
def specification(name: str) -> Any:
    """A published document; None where it is not at hand."""
    path = SPECS / name
    return json.loads(path.read_text()) if path.exists() else None


class Contract:
    """Checks bodies against the Swagger document and against the models of the SDK's version."""

    def __init__(self) -> None:
        self.swagger = specification("batch-2024-07-01.20.0.json")
        self.models = specification("batch-2025-06-01.models.schema.json")
        self.checked = 0

    def request(self, method: str, path: str, body: Any) -> None:
        """A request's body fits both."""
        route, operation = self._operation(method, path)
        for parameter in operation.get("parameters", []):
            if parameter.get("in") == "body":
                self._swagger(parameter["schema"], body)
        if route in REQUEST_MODELS:
            self._model(REQUEST_MODELS[route], body)

    def response(self, method: str, path: str, status: int, body: Any) -> None:
        """A response's body fits both; a selection of properties cannot be checked and must not be given."""
        route, operation = self._operation(method, path)
        if status >= 400:
            self._swagger({"$ref": "#/definitions/BatchError"}, body)
            self._model("BatchError", body)
            return
        self._swagger(operation["responses"][str(status)].get("schema", {}), body)
        if route in RESPONSE_MODELS:
            for item in body["value"] if set(body) <= {"value", "odata.nextLink"} else [body]:
                self._model(RESPONSE_MODELS[route], item)

    def _operation(self, method: str, path: str) -> tuple[str, Any]:
        names = path.strip("/").split("/")
        pattern = "/".join("*" if number % 2 else name for number, name in enumerate(names))
        for template, operations in self.swagger["paths"].items():
            if re.sub(r"\{\w+\}", "*", template).strip("/") == pattern:
                return f"{method} {pattern}", operations[method.lower()]
        raise AssertionError(f"{method} {path} is not in the contract")

    def _swagger(self, schema: Any, body: Any) -> None:
        schema = schema | {"definitions": self.swagger["definitions"]}
        self._check(Draft4Validator(schema), body)

    def _model(self, name: str, body: Any) -> None:
        schema = {"$ref": f"#/$defs/{name}", "$defs": self.models["$defs"]}
        self._check(Draft202012Validator(schema), body)

    def _check(self, validator: Any, body: Any) -> None:
        self.checked += 1
        errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(body)]
        assert not errors, "\n".join(errors)


class ContractPolicy(AsyncHTTPPolicy):  # type: ignore[type-arg]
    """Lets the contract see what the SDK sends and gets."""

    def __init__(self, contract: Contract) -> None:
        super().__init__()
        self.contract = contract

    async def send(self, request: PipelineRequest) -> PipelineResponse:  # type: ignore[type-arg]
        """Check the request on its way out, and the answer, whatever its status, on its way back."""
        sent = request.http_request
        path = sent.url.partition("?")[0].split("/", 3)[3]
        if sent.content:
            self.contract.request(sent.method, path, json.loads(sent.content))
        answer = await self.next.send(request)
        got = answer.http_response
        is_json = got.headers.get("Content-Type", "").startswith("application/json")
        if is_json and "select" not in sent.url and sent.method != "HEAD":
            await got.load_body()
            self.contract.response(sent.method, path, got.status_code, json.loads(got.body()))
        return answer


@dataclass
class Batch:
    """A server and a client of it, with what tests do often."""

    server: BatchServer
    client: BatchClient
    root: Path

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
        return str((await self.client.get_task(job_id, task_id)).state.value)

    async def node_states(self, pool_id: str = "pool") -> list[str]:
        """The states of a pool's nodes, as the wire has them."""
        return [str(node.state.value) async for node in self.client.list_nodes(pool_id)]

    async def output(self, task_id: str, name: str = "stdout.txt", *, job_id: str = "job") -> str:
        """A file of a task."""
        chunks = await self.client.download_task_file(job_id, task_id, name)
        return b"".join([chunk async for chunk in chunks]).decode()

    async def until(self, look: Callable[[], Awaitable[Any]], wanted: Any) -> None:
        """Wait until a look at the service shows what is wanted."""
        seen: Any = None
        try:
            async with asyncio.timeout(PATIENCE):
                while (seen := await look()) != wanted:  # noqa: ASYNC110 - a service can only be asked
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"expected {wanted!r}, still {seen!r}") from None


def pool_options(pool_id: str, nodes: int, **options: Any) -> models.BatchPoolCreateOptions:
    """A pool of the default image."""
    image = models.BatchVmImageReference(publisher="Canonical", offer="ubuntu-24_04-lts", sku="server")
    machine = models.VirtualMachineConfiguration(
        image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04"
    )
    defaults = {
        "vm_size": "Standard_D2s_v3",
        "target_dedicated_nodes": nodes,
        "virtual_machine_configuration": machine,
    }
    return models.BatchPoolCreateOptions(id=pool_id, **(defaults | options))


@pytest.fixture
def contract() -> Contract:
    """The published contract; tests go on without it, saying so, where it is not at hand."""
    return Contract()


@pytest.fixture
async def batch_with(tmp_path: Path, contract: Contract) -> AsyncIterator[Callable[..., Awaitable[Batch]]]:
    """Makes a server with settings of the test's own, and a client of it."""
    async with AsyncExitStack() as stack:

        async def make(*, key: str = KEY, api_version: str | None = None, **settings: Any) -> Batch:
            server = BatchServer(account=ACCOUNT, key=KEY, root=tmp_path, **settings)
            await server.start()
            stack.push_async_callback(server.aclose)
            options: dict[str, Any] = {"retry_total": 0}
            if contract.swagger is not None and contract.models is not None:
                options["per_retry_policies"] = [ContractPolicy(contract)]
            if api_version is not None:
                options["api_version"] = api_version
            client = BatchClient(server.url, AzureNamedKeyCredential(ACCOUNT, key), **options)
            await stack.enter_async_context(client)
            return Batch(server, client, tmp_path)

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
