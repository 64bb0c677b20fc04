"""The administration of the namespace over HTTP, as the administration client of the SDKs speaks it.

Every request carries a shared access signature that must grant Manage at its path. A queue that does not
exist is answered with an empty feed, not with 404: so does Azure.
"""

from __future__ import annotations

import asyncio
import base64
import os
from dataclasses import asdict
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlencode

from aiohttp import web

from batchflow.local.http.http_server import HttpServer, is_text
from batchflow.local.security.sas import Rights, TokenRefused
from batchflow.local.servicebus.core.atom import (
    read_queue,
    write_entry,
    write_error,
    write_feed,
    write_namespace,
)
from batchflow.local.servicebus.core.broker import BUSY
from batchflow.local.servicebus.core.namespace import AdministrationRefused, QueueSettings
from batchflow.local.servicebus.core.operations import Operations

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchflow.local.http.internal_errors import InternalErrors
    from batchflow.local.servicebus.core.broker import BrokerCore

OPERATIONS_PATH = "$operations"
"""Answered with what was counted; Azure has no such path."""

_MAX_PAGE = 100
_MAX_BODY = 1 << 20
"""Bytes; aiohttp's own limit for a body without a length."""


def administration(
    broker: BrokerCore,
    clock: Callable[[], float],
    latency: float,
    changed: Callable[[], None],
    errors: InternalErrors,
    stranger_timeout: float,
) -> web.Server:
    """Make the HTTP side of the server, a factory of connections. ``changed`` is called after a request."""
    administrator = _Administrator(broker, clock)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        try:
            response = await administrator.answer(request, server.known)
        except AdministrationRefused as refused:
            response = _xml(write_error(refused.status, refused.detail), refused.status)
        except (ConnectionError, web.HTTPException):
            raise
        except web.RequestPayloadError:
            response = _xml(write_error(400, "The body is not what the headers say."), 400)
        except Exception:
            errors.note(f"a request to Service Bus: {request.method} {request.path[:100]!r}")
            response = _xml(write_error(500, "The local Service Bus failed: its log says how."), 500)
        changed()
        if latency:
            await asyncio.sleep(latency)
        return response

    server = HttpServer(handle, access_log=None, stranger_timeout=stranger_timeout)
    return server


class _Administrator:
    """Answers requests, one at a time."""

    def __init__(self, broker: BrokerCore, clock: Callable[[], float]) -> None:
        self._broker = broker
        self._namespace = broker.namespace
        self._clock = clock

    async def answer(
        self, request: web.BaseRequest, known: Callable[[web.BaseRequest], None]
    ) -> web.Response:
        """Do what a request asks for, and read its body once its sender is ``known``.

        Raises :class:`AdministrationRefused`.
        """
        if not is_text(request):
            raise AdministrationRefused(400, "The request line and the headers must be UTF-8.")
        path = unquote(request.rel_url.raw_path).strip("/")
        self._authorize(request, path.lower(), self._clock())
        known(request)
        if (request.content_length or 0) > _MAX_BODY:
            raise AdministrationRefused(413, f"A body has at most {_MAX_BODY} bytes.")
        body = await request.read()
        return self._route(request, path, body, self._clock())

    def _authorize(self, request: web.BaseRequest, path: str, now: float) -> None:
        if self._broker.busy:
            raise AdministrationRefused(503, BUSY.description)
        try:
            grant = self._namespace.authenticate(request.headers.get("Authorization", ""), path, now)
        except TokenRefused as refused:
            raise AdministrationRefused(401, f"InvalidSignature: {refused}.") from refused
        if Rights.MANAGE not in grant.rights or not grant.covers(path):
            raise AdministrationRefused(401, "Unauthorized access: the Manage claim is required.")

    def _route(self, request: web.BaseRequest, path: str, body: bytes, now: float) -> web.Response:
        base_url = f"https://{request.host}"
        match request.method, path.lower():
            case "GET", "$namespaceinfo":
                return _xml(write_namespace(self._namespace, request.host))
            case "GET", "$resources/queues":
                return self._list(request, base_url)
            case "GET", name if name == OPERATIONS_PATH:
                return web.json_response(asdict(self._operations()))
            case "GET", "$resources/topics":
                return _xml(write_feed((), base_url, None))
            case _, name if "/subscriptions" in name or name.startswith("$"):
                raise AdministrationRefused(501, "Only queues are part of the local Service Bus.")
            case "GET", _:
                entity = self._namespace.find(path)
                empty = write_feed((), base_url, None)
                return _xml(empty if entity is None else write_entry(entity, base_url))
            case "PUT", _:
                return self._put(path, body, now, base_url, update="If-Match" in request.headers)
            case "DELETE", _:
                self._broker.delete_queue(path, now)
                return web.Response()
            case method, _:
                raise AdministrationRefused(405, f"{method} is not an operation on a queue.")

    def _operations(self) -> Operations:
        return sum((entity.operations for entity in self._namespace), Operations())

    def _list(self, request: web.BaseRequest, base_url: str) -> web.Response:
        try:
            skip, top = (int(request.query.get(key, default)) for key, default in _PAGE.items())
        except ValueError:
            raise AdministrationRefused(400, "$skip and $top must be numbers.") from None
        entities = list(self._namespace)
        skip = max(0, min(skip, len(entities)))
        top = max(1, min(top, _MAX_PAGE))
        page = entities[skip : skip + top]
        more = skip + top < len(entities)
        query = urlencode({"$skip": skip + top, "$top": top})
        next_url = f"{base_url}/$Resources/queues?{query}" if more else None
        return _xml(write_feed(page, base_url, next_url))

    def _put(self, path: str, body: bytes, now: float, base_url: str, *, update: bool) -> web.Response:
        existing = self._namespace.find(path)
        base = existing.settings if existing and update else QueueSettings()
        settings = read_queue(body, base, _new_key)
        if update:
            return _xml(write_entry(self._broker.update_queue(path, settings, now), base_url))
        return _xml(write_entry(self._broker.create_queue(path, settings, now), base_url), 201)


_PAGE = {"$skip": "0", "$top": "100"}


def _new_key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


def _xml(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/xml", charset="utf-8")
