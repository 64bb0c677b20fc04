"""The local Azure Batch service: its REST data plane on loopback, in front of nodes that are processes.

A thin shell. `core.state` decides, `routes` speaks the REST contract, `nodes` runs commands. Here are the
sockets, the clock, the tasks and the order in which things end.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import parse_qsl, unquote

import orjson
from aiohttp import web

from batchflow.local.batch.core.actions import (
    Action,
    Allocate,
    Boot,
    Discard,
    Remove,
    RunStartTask,
    RunTask,
    Stop,
)
from batchflow.local.batch.core.entities import FailureInfo, Outcome
from batchflow.local.batch.core.errors import Refused
from batchflow.local.batch.core.samples import AutoscaleTiming
from batchflow.local.batch.core.state import BatchState
from batchflow.local.batch.nodes.commands import REAPER_TIMEOUT, STOP_GRACE, NodeCommand
from batchflow.local.batch.nodes.directories import (
    NodeAccount,
    NodeDirectories,
    start_task_environment,
    task_environment,
)
from batchflow.local.batch.nodes.node_user import NodeUser
from batchflow.local.batch.nodes.resource_files import NodeDownloads
from batchflow.local.batch.rest.auth import authenticate, authenticate_token
from batchflow.local.batch.rest.metadata import PREFIX as METADATA
from batchflow.local.batch.rest.metadata import metadata
from batchflow.local.batch.rest.values import parse_body
from batchflow.local.batch.routes import BatchRequest, BatchResponse, DataPlane, split_path
from batchflow.local.http.http_server import HttpServer, is_text
from batchflow.local.http.internal_errors import InternalErrors
from batchflow.local.security.entra import BEARER, STORAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from batchflow.local.batch.core.entities import NodeRecord, TaskRun
    from batchflow.local.batch.nodes.files import FileSlice
    from batchflow.local.security.identity_endpoint import Entra

JSON_TYPE = "application/json;odata=minimalmetadata"
MAX_BODY = 1 << 20
"""Bytes of a request's body, as the service limits them."""

SHUTDOWN_TIMEOUT = 1.0
"""Seconds that requests under way have to end when the server closes."""

_CHUNK = 1 << 16
_CLOSED = "the Batch server is closed"
_UNKNOWN = FailureInfo("servererror", "Unknown", "An unknown error has occurred while running the task")


class BatchServer:
    """One Batch account, served from `start` to `aclose`.

    `root` is an existing directory for the nodes' disks. Every answer waits `latency` seconds, every node
    takes `boot_delay` seconds to boot, and a task that is ended has `stop_grace` seconds to do so by itself.
    `key` is the account's key in base64. `errors` counts what fails in the server itself. `timing` says when
    autoscale formulas are evaluated; the default is Azure's. `node_user` is whom the nodes' commands run as.
    """

    def __init__(
        self,
        *,
        account: str,
        key: str,
        root: Path,
        latency: float = 0.0,
        boot_delay: float = 0.0,
        stop_grace: float = STOP_GRACE,
        entra: Entra | None = None,
        errors: InternalErrors | None = None,
        timing: AutoscaleTiming | None = None,
        node_user: NodeUser | None = None,
    ) -> None:
        self.port = 0
        self.url = ""
        self.secure_url = ""
        """The same over TLS, at a port of its own, where there is Entra ID."""
        self._account = account
        self._key = key
        self._latency = latency
        self._boot_delay = boot_delay
        self._stop_grace = stop_grace
        self._disks = NodeDirectories(root.resolve(), node_user)
        self._errors = errors or InternalErrors()
        self._state = BatchState(account, self._errors.note, timing)
        self._entra = entra
        self._plane = DataPlane(self._state, self._disks, lambda: self.url, self._identity_of)
        self._commands: dict[int, NodeCommand] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._watches: set[asyncio.Task[None]] = set()
        self._alarm: asyncio.TimerHandle | None = None
        self._server: HttpServer | None = None
        self._runner: web.ServerRunner | None = None
        self._web: NodeDownloads | None = None
        self._closing: asyncio.Task[None] | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Begin to serve; port 0 chooses a free one. Raises OSError when the port cannot be had."""
        self._server = HttpServer(self._handle, access_log=None)
        runner = web.ServerRunner(self._server, shutdown_timeout=SHUTDOWN_TIMEOUT)
        await runner.setup()
        self._runner = runner
        site = web.TCPSite(runner, host, port, reuse_address=True)
        await site.start()
        self.port = int(runner.addresses[0][1])
        self.url = f"http://{host}:{self.port}"
        if self._entra is not None:
            await web.TCPSite(runner, host, 0, ssl_context=self._entra.served).start()
            self.secure_url = f"https://{host}:{runner.addresses[1][1]}"
        self._web = NodeDownloads(None if self._entra is None else self._entra.trusted)

    async def aclose(self) -> None:
        """Kill every task's tree, stop serving. Idempotent; when cancelled, the closing itself goes on."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="batch-close")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        commands = list(self._commands.values())
        for command in commands:
            command.kill()
        for job in self._jobs:
            job.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._watches:
            await asyncio.wait(self._watches, timeout=REAPER_TIMEOUT)
        for command in commands:
            await command.abandon()
        await asyncio.gather(*self._jobs, *self._watches, return_exceptions=True)
        if self._web is not None:
            await self._web.aclose()

    # HTTP

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path.startswith(METADATA):
            return self._metadata(request)
        headers = _common_headers(request) if is_text(request) else {}
        answer = await self._answer(request)
        self._act()
        if self._latency:
            await asyncio.sleep(self._latency)
        return await self._respond(request, answer, headers)

    def _metadata(self, request: web.BaseRequest) -> web.Response:
        """Answer a node about itself. There is no login, because on Azure only the machine reaches this."""
        pools = self._state.pools.by_id.values()
        nodes = [node for pool in pools for node in pool.nodes.values()]
        headers = {name.lower(): value for name, value in request.headers.items()}
        status, answer = metadata(request.path, headers, request.query, nodes)
        if isinstance(answer, str):
            return web.Response(status=status, text=answer)
        return web.json_response(answer, status=status)

    async def _answer(self, request: web.BaseRequest) -> BatchResponse:
        try:
            answer = self._plane.answer(await self._accept(request))
            return answer if answer.document is None else replace(answer, body=orjson.dumps(answer.document))
        except Refused as refused:
            return _refusal(refused)
        except (ConnectionError, web.RequestPayloadError):
            # The client left while it was sending, or sent no body; in the first case nobody reads this.
            return _refusal(Refused("InvalidRequestBody", Reason="the body is not what the headers say"))
        except FileNotFoundError as error:
            # A task took the file away while it was being looked at.
            return _refusal(Refused("FileNotFound", FilePath=Path(error.filename or "").name))
        except Exception:
            self._errors.note(f"a request to Batch: {request.method} {request.path[:100]!r}")
            return _refusal(Refused("InternalError"))

    async def _accept(self, request: web.BaseRequest) -> BatchRequest:
        if not is_text(request):
            raise Refused("InvalidHeaderValue", Reason="the request line and the headers must be UTF-8")
        self._authenticate(request, time.time())
        if self._server is not None:
            self._server.known(request)
        body = await _read_body(request)
        now = time.time()
        path, _, query = request.raw_path.partition("?")
        return BatchRequest(
            method=request.method,
            names=split_path(unquote(segment) for segment in path.strip("/").split("/")),
            query=dict(parse_qsl(query, keep_blank_values=True)),
            headers=request.headers,
            body=parse_body(body),
            now=now,
        )

    def _authenticate(self, request: web.BaseRequest, now: float) -> None:
        header = request.headers.get("authorization", "")
        if self._entra is not None and request.secure and header.startswith(BEARER):
            authenticate_token(header, self._entra.directory, now)
            return
        authenticate(
            request.method, request.raw_path, request.headers, account=self._account, key=self._key, now=now
        )

    def _identity_of(self, pool_id: str) -> dict[str, Any] | None:
        """Return the identity that Azure's management gave a pool of that id."""
        identity = None if self._entra is None else self._entra.of_pool(pool_id)
        if identity is None:
            return None
        ids = {
            "resourceId": identity.resource_id,
            "clientId": identity.client_id,
            "principalId": identity.object_id,
        }
        return {"type": "UserAssigned", "userAssignedIdentities": [ids]}

    def _authorization(self, node: NodeRecord) -> Callable[[str], str | None]:
        """Return the header by which a node's identity opens blobs."""
        if (entra := self._entra) is None:
            return lambda _: None
        pool_id = node.pool.spec.id
        return lambda resource_id: entra.authorization(pool_id, resource_id, STORAGE)

    def _identity_environment(self, node: NodeRecord) -> dict[str, str]:
        return {} if self._entra is None else self._entra.environment(node.pool.spec.id)

    async def _respond(
        self, request: web.BaseRequest, answer: BatchResponse, headers: dict[str, str]
    ) -> web.StreamResponse:
        if answer.content is not None:
            try:
                return await _send_file(request, answer.content, headers | answer.headers)
            except FileNotFoundError:
                answer = _refusal(Refused("FileNotFound", FilePath=answer.content.path.name))
        response = web.Response(status=answer.status, headers=headers | answer.headers)
        if answer.body:
            response.body = answer.body
            response.headers["Content-Type"] = JSON_TYPE
        return response

    # What the state wants done

    def _act(self) -> None:
        """Begin everything that the state asks for, and set the alarm for its next deadline."""
        if self._closing is not None:
            return
        while actions := self._state.take_actions(time.time()):
            for action in actions:
                self._begin(action)
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        deadline = self._state.next_deadline()
        if deadline is not None:
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_later(max(0.0, deadline - time.time()), self._tick)

    def _tick(self) -> None:
        try:
            self._state.tick(time.time())
        finally:
            self._act()

    def _begin(self, action: Action) -> None:
        match action:
            case Allocate(node):
                self._spawn(self._allocate(node))
            case Boot(node, boot, wipe):
                self._spawn(self._boot(node, boot, wipe=wipe))
            case RunStartTask(node, run):
                self._run_start_task(node, run)
            case RunTask(run):
                self._run_task(run)
            case Stop(run_id, hard):
                if (command := self._commands.get(run_id)) is not None:
                    command.kill() if hard else command.stop()
            case Remove(node):
                self._spawn(self._remove(node))
            case Discard(job_id, task_id):
                self._discard(job_id, task_id)

    def _discard(self, job_id: str, task_id: str | None) -> None:
        for pool in self._state.pools.by_id.values():
            for node in pool.nodes.values():
                directory = self._disks.job(node, job_id)
                self._spawn(self._disks.discard(directory / task_id if task_id else directory))

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        """Begin a job that may be cancelled when the server closes."""
        self._keep(asyncio.create_task(job), self._jobs)

    def _watch(self, job: Coroutine[Any, Any, None]) -> None:
        """Begin a job that ends when its command's processes are gone."""
        self._keep(asyncio.create_task(job), self._watches)

    def _keep(self, task: asyncio.Task[None], tasks: set[asyncio.Task[None]]) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._errors.note("a node of Batch", error)

        tasks.add(task)
        task.add_done_callback(ended)

    async def _allocate(self, node: NodeRecord) -> None:
        self._disks.lay_out(node)
        self._state.pools.node_allocated(node, time.time())
        self._act()

    async def _boot(self, node: NodeRecord, boot: int, *, wipe: bool) -> None:
        if wipe:
            await self._disks.discard(self._disks.of(node))
        self._disks.lay_out(node)
        await asyncio.sleep(self._boot_delay + self._state.faults.of(node.pool.spec.id).boot_delay)
        self._state.nodes.booted(node, boot, time.time())
        self._act()

    async def _remove(self, node: NodeRecord) -> None:
        await self._disks.discard(self._disks.of(node))
        self._state.pools.node_removed(node, time.time())
        self._act()

    def _run_start_task(self, node: NodeRecord, run: int) -> None:
        record = node.start_task
        if record is None:
            raise AssertionError("a start task without a record")
        spec = record.spec.command
        environment = start_task_environment(NodeAccount(self._account, self.url), self._disks, node, spec)
        command = NodeCommand(
            spec,
            self._disks.startup(node),
            self._identity_environment(node) | environment,
            node.host_name,
            grace=self._stop_grace,
            authorization=self._authorization(node),
            user=self._disks.user,
        )
        self._commands[run] = command
        self._watch(self._keep_start_task(run, command))

    async def _keep_start_task(self, run: int, command: NodeCommand) -> None:
        outcome = await self._execute(run, command, launched=lambda: None)
        self._state.nodes.start_task_ended(run, outcome, time.time())
        self._act()

    def _run_task(self, run: TaskRun) -> None:
        task, node = run.task, run.node
        environment = task_environment(NodeAccount(self._account, self.url), self._disks, node, task)
        command = NodeCommand(
            task.spec.command,
            self._disks.task(node, task.job.spec.id, task.spec.id),
            self._identity_environment(node) | environment,
            node.host_name,
            grace=self._stop_grace,
            authorization=self._authorization(node),
            user=self._disks.user,
        )
        self._commands[run.id] = command
        self._watch(self._keep_task(run, command))

    async def _keep_task(self, run: TaskRun, command: NodeCommand) -> None:
        def launched() -> None:
            self._state.run_launched(run.id, time.time())

        outcome = await self._execute(run.id, command, launched)
        self._state.run_ended(run.id, outcome, time.time())
        self._act()

    async def _execute(self, run: int, command: NodeCommand, launched: Callable[[], None]) -> Outcome:
        if self._web is None:
            raise RuntimeError(_CLOSED)
        try:
            return await command.run(self._web, launched)
        except Exception:
            self._errors.note("a command on a node of Batch")
            return Outcome(None, _UNKNOWN)
        finally:
            del self._commands[run]


def _common_headers(request: web.BaseRequest) -> dict[str, str]:
    headers = {
        "request-id": str(uuid.uuid4()),
        "Server": "Microsoft-HTTPAPI/2.0",
        "DataServiceVersion": "3.0",
    }
    client_id = request.headers.get("client-request-id")
    if client_id and request.headers.get("return-client-request-id", "").lower() == "true":
        headers["client-request-id"] = client_id
    return headers


async def _read_body(request: web.BaseRequest) -> bytes:
    if (request.content_length or 0) > MAX_BODY:
        raise Refused("RequestBodyTooLarge", MaxLimit=MAX_BODY)
    body = bytearray()
    async for chunk in request.content.iter_chunked(_CHUNK):
        body.extend(chunk)
        if len(body) > MAX_BODY:
            raise Refused("RequestBodyTooLarge", MaxLimit=MAX_BODY)
    return bytes(body)


def _refusal(refused: Refused) -> BatchResponse:
    bare = refused.status == 304
    return BatchResponse(refused.status, body=b"" if bare else orjson.dumps(refused.body()))


async def _send_file(
    request: web.BaseRequest, part: FileSlice, headers: dict[str, str]
) -> web.StreamResponse:
    """Send a part of a file, or what is left of it when it has shrunk before.

    When it shrinks during the transfer the connection is broken, so that no client waits for the rest.
    """
    file, remaining = _open(part)
    with file:
        response = web.StreamResponse(headers=headers)
        response.content_type = "application/octet-stream"
        response.content_length = remaining
        await response.prepare(request)
        while remaining and (chunk := file.read(min(_CHUNK, remaining))):
            remaining -= len(chunk)
            await response.write(chunk)
    if remaining and request.transport is not None:
        request.transport.abort()
    return response


def _open(part: FileSlice) -> tuple[BinaryIO, int]:
    """Return the file, at the part's beginning, and how many bytes of the part it still has."""
    file = part.path.open("rb")
    there = file.seek(0, os.SEEK_END)
    return file, max(0, min(part.length, there - file.seek(part.start)))
