"""The local Blob service: HTTP on loopback that the unmodified Azure Storage SDKs talk to.

A request is taken apart, authenticated and handed to its operation; every outcome becomes an answer in the
service's own form. What the service does not have is refused with 501, see `service.ROUTES`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

from aiohttp import web

from batchflow.local.blob.core import http
from batchflow.local.blob.core.auth import Authenticator, SignedRequest
from batchflow.local.blob.core.errors import BlobErrorCode, BlobRefused
from batchflow.local.blob.core.index import BlobIndex
from batchflow.local.blob.core.xml import error_document
from batchflow.local.blob.files import CHUNK, BlobFiles
from batchflow.local.blob.service import BlobRequest, BlobResponse, BlobService, Rest, find_route
from batchflow.local.http.http_server import HttpServer, is_text
from batchflow.local.http.internal_errors import InternalErrors
from batchflow.local.security.identity_endpoint import Entra

_log = logging.getLogger(__name__)

_DEFAULT_VERSION = "2026-10-06"

# A blob's name of 1,024 characters, percent-encoded, and a SAS; one header of the greatest metadata.
_MAX_LINE = 32 * 1024
_MAX_FIELD = 16 * 1024


class BlobServer:
    """One storage account's Blob service over plain HTTP; with `entra` also over TLS, where tokens count.

    `key` is base64, as Azure's; content is kept in files under `root`; every answer leaves `latency` seconds
    late. The server is meant for loopback: it holds its index in memory and starts empty. `errors` counts
    what fails in the server itself.
    """

    def __init__(
        self,
        *,
        account: str,
        key: str,
        root: Path,
        latency: float = 0.0,
        entra: Entra | None = None,
        errors: InternalErrors | None = None,
    ) -> None:
        self._errors = errors or InternalErrors()
        self._server: HttpServer | None = None
        self._account = account
        self._key = key
        self._latency = latency
        self._entra = entra
        self._authenticator = Authenticator(account, key, entra.directory if entra is not None else None)
        self._index = BlobIndex()
        self._service = BlobService(self._index, BlobFiles(root), self._authenticator.delegated_key)
        self._runner: web.ServerRunner | None = None
        self._address = ("127.0.0.1", 0)
        self._secure_port = 0

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; with port 0 on a free one. Raises OSError when the port is taken."""
        self._server = HttpServer(
            self._handle, access_log=None, max_line_size=_MAX_LINE, max_field_size=_MAX_FIELD
        )
        runner = web.ServerRunner(self._server, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            if self._entra is not None:
                await web.TCPSite(runner, host, 0, ssl_context=self._entra.served).start()
                self._secure_port = runner.addresses[1][1]
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        self._address = (host, runner.addresses[0][1])

    async def aclose(self) -> None:
        """Stop listening and end open connections; requests under way get a second. Idempotent."""
        if (runner := self._runner) is not None:
            self._runner = None
            await runner.cleanup()

    @property
    def port(self) -> int:
        """The port listened on; 0 before `start`."""
        return self._address[1]

    @property
    def url(self) -> str:
        """The account's endpoint, without a trailing slash."""
        return f"http://{self._address[0]}:{self.port}/{self._account}"

    @property
    def secure_url(self) -> str:
        """The same over TLS, at a port of its own, where there is Entra ID."""
        return f"https://{self._address[0]}:{self._secure_port}/{self._account}"

    @property
    def connection_string(self) -> str:
        """What an Azure Storage SDK connects with. It holds the key."""
        return (
            f"DefaultEndpointsProtocol=http;AccountName={self._account};AccountKey={self._key};"
            f"BlobEndpoint={self.url};"
        )

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        answer = await self._answer(request)
        try:
            if self._latency:
                await asyncio.sleep(self._latency)
            return await _send(request, answer)
        finally:
            if answer.rest is not None:
                os.close(answer.rest.descriptor)

    async def _answer(self, request: web.BaseRequest) -> BlobResponse:
        try:
            return await self._perform(request)
        except BlobRefused as refused:
            return _refusal(refused)
        except ConnectionError:
            # The client left while it was sending, so this answer is not read.
            return _refusal(BlobRefused(BlobErrorCode.INVALID_INPUT, "The connection was lost."))
        except OSError as error:
            _log.warning("blob.storage_failed", extra={"error": errno.errorcode.get(error.errno or 0)})
            return _refusal(BlobRefused(BlobErrorCode.INTERNAL_ERROR, error.strerror))
        except web.RequestPayloadError:
            return _refusal(BlobRefused(BlobErrorCode.INVALID_INPUT, "The body is not what the headers say."))
        except Exception:
            self._errors.note(f"a request to Blob: {request.method} {request.path[:100]!r}")
            return _refusal(BlobRefused(BlobErrorCode.INTERNAL_ERROR))

    async def _perform(self, request: web.BaseRequest) -> BlobResponse:
        if not is_text(request):
            raise BlobRefused(BlobErrorCode.INVALID_HEADER_VALUE, "The request must be UTF-8.")
        target, query = http.split_target(request.raw_path)
        original_names = {name.lower(): name for name in request.headers}
        headers = {name: ",".join(request.headers.getall(name)) for name in original_names}
        signed = SignedRequest(
            request.method,
            target.raw,
            query,
            headers,
            target.container,
            target.blob,
            scheme="https" if request.secure else "http",
            source_ip=request.remote or "",
        )
        grant = self._authenticator.authenticate(signed, self._index.policy, time.time())
        if self._server is not None:
            self._server.known(request)
        if target.account != self._account:
            raise BlobRefused(BlobErrorCode.INVALID_URI, f"The account in the URI must be {self._account!r}.")
        level, route = find_route(request.method, target, query)
        if route.any_of is not None:
            grant.require(level, route.any_of)
        http.check_supported(headers, query)
        body = _body(request)
        call = BlobRequest(target, query, headers, original_names, grant, self.url + "/", body)
        return await route.operation(self._service, call)


async def _body(request: web.BaseRequest) -> AsyncIterator[bytes]:
    """Return the request's body as it comes in; the client is told to go on when it waits for that."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    async for data in request.content.iter_any():
        yield data


def _refusal(refused: BlobRefused) -> BlobResponse:
    fault = refused.fault
    headers = {"x-ms-error-code": fault.code, "Content-Type": "application/xml"}
    if fault.status == 401:
        headers["WWW-Authenticate"] = "SharedKey"
    body = error_document(fault.code, refused.detail or fault.message)
    return BlobResponse(fault.status, headers, b"" if fault.status == 304 else body.encode())


async def _send(request: web.BaseRequest, answer: BlobResponse) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.headers["x-ms-request-id"] = str(uuid4())
    version = request.headers.get("x-ms-version")
    response.headers["x-ms-version"] = version if version and version.isascii() else _DEFAULT_VERSION
    client_id = request.headers.get("x-ms-client-request-id")
    if client_id and is_text(request):
        response.headers["x-ms-client-request-id"] = client_id
    response.content_length = len(answer.body) if answer.size is None else answer.size
    try:
        await response.prepare(request)
        if request.method != "HEAD":
            await response.write(answer.body)
            if answer.rest is not None:
                await _send_rest(response, answer.rest)
        await response.write_eof()
    except ConnectionError:
        # The client has gone, which is no error of the server.
        _log.debug("blob.client_left")
    return response


async def _send_rest(response: web.StreamResponse, rest: Rest) -> None:
    for offset in range(rest.offset, rest.offset + rest.size, CHUNK):
        size = min(CHUNK, rest.offset + rest.size - offset)
        await response.write(await asyncio.to_thread(os.pread, rest.descriptor, size, offset))
