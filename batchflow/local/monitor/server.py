"""The local Logs Ingestion API over TLS: what Azure's own client sends logs to.

`POST /dataCollectionRules/<rule>/streams/<stream>?api-version=2023-01-01` with an array of JSON objects,
plain or gzip, and a token of Entra ID. A call has at most 1 MB, compressed and not. What Azure answers is
answered here: 204, 400 for a body that is no such array, 401 and 403 for tokens, 404 for another rule, 413,
and 429 with `Retry-After` as often as a test wants it.
(https://learn.microsoft.com/azure/azure-monitor/logs/logs-ingestion-api-overview)
"""

from __future__ import annotations

import json
import re
import secrets
import time
import zlib
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from batchflow.local.http.http_server import HttpServer, is_text
from batchflow.local.http.internal_errors import InternalErrors
from batchflow.local.security.entra import BEARER, MONITOR
from batchflow.local.security.sas import TokenRefused

if TYPE_CHECKING:
    from batchflow.local.security.identity_endpoint import Entra

MOST_BYTES: Final = 1024 * 1024
"""Bytes of a call, compressed or not."""
_PATH: Final = re.compile(r"/dataCollectionRules/([^/]+)/streams/(Custom-[A-Za-z0-9_]{1,100})")
_MOST_ROWS: Final = 100_000
"""Rows that are kept; the service is in memory."""


class IngestionServer:
    """One data collection rule, which keeps what it gets."""

    def __init__(self, entra: Entra, errors: InternalErrors | None = None) -> None:
        self.rule = f"dcr-{secrets.token_hex(16)}"
        self.rows: dict[str, list[dict[str, Any]]] = {}
        """What came, by stream."""
        self.throttled = 0
        """Calls that are answered with 429 from now on, before others are taken."""
        self.retry_after = 1
        """Seconds that such an answer asks for."""
        self.most_bytes = MOST_BYTES
        self._entra = entra
        self._errors = errors or InternalErrors()
        self._server: HttpServer | None = None
        self._runner: web.ServerRunner | None = None
        self._address = ("", 0)

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"https://{self._address[0]}:{self._address[1]}"

    async def start(self, host: str, port: int = 0) -> None:
        """Listen; with port 0 on a free one. Raises OSError when the port is taken."""
        self._server = HttpServer(self._handle, access_log=None, auto_decompress=False)
        runner = self._runner = web.ServerRunner(self._server, shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, host, port, ssl_context=self._entra.served).start()
        self._address = (host, runner.addresses[0][1])

    async def aclose(self) -> None:
        """Stop listening. Idempotent."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        try:
            return await self._answer(request)
        except _Refused as refused:
            return refused.response()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        if not is_text(request):
            raise _Refused(400, "InvalidRequest", "the request must be UTF-8")
        rule, stream = self._authorized(request)
        if rule != self.rule:
            raise _Refused(404, "NotFound", f"there is no data collection rule {rule!r}")
        if self.throttled:
            self.throttled -= 1
            after = {"Retry-After": str(self.retry_after)}
            raise _Refused(429, "TooManyRequests", "the limit of requests a minute is reached", after)
        data = await self._body(request)
        try:
            rows = json.loads(data)
        except ValueError:
            rows = None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise _Refused(400, "InvalidJson", "the body must be an array of objects")
        kept = self.rows.setdefault(stream, [])
        kept += rows
        del kept[:-_MOST_ROWS]
        return web.Response(status=204)

    def _authorized(self, request: web.BaseRequest) -> tuple[str, str]:
        """Return the rule and the stream of an authorized request."""
        found = _PATH.fullmatch(request.path)
        if request.method != "POST" or found is None or not request.rel_url.query.get("api-version"):
            raise _Refused(404, "NotFound", "only POST /dataCollectionRules/RULE/streams/Custom-NAME is here")
        header = request.headers.get("Authorization", "")
        try:
            if not header.startswith(BEARER):
                raise TokenRefused("there is no bearer token")
            known = self._entra.directory.check(header.removeprefix(BEARER), MONITOR, time.time())
        except TokenRefused as error:
            raise _Refused(401, "InvalidToken", str(error)) from None
        if not known.principal.may_send_to(found[1]):
            raise _Refused(403, "OperationFailed", "the principal may not send to the data collection rule")
        if self._server is not None:
            self._server.known(request)
        return found[1], found[2]

    async def _body(self, request: web.BaseRequest) -> bytes:
        data = bytearray()
        async for part in request.content.iter_any():
            data += part
            if len(data) > self.most_bytes:
                raise _too_large()
        if request.headers.get("Content-Encoding") != "gzip":
            return bytes(data)
        unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            whole = unpacker.decompress(bytes(data), self.most_bytes + 1)
        except zlib.error:
            raise _Refused(400, "InvalidBody", "the body is not gzip") from None
        if len(whole) > self.most_bytes:
            raise _too_large()
        return whole


class _Refused(Exception):
    """An answer other than 204."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self._status, self._code, self._headers = status, code, headers

    def response(self) -> web.Response:
        body = {"error": {"code": self._code, "message": str(self)}}
        return web.json_response(body, status=self._status, headers=self._headers)


def _too_large() -> _Refused:
    return _Refused(413, "ContentLengthLimitExceeded", "a call has at most 1 MB")
