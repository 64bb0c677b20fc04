"""The HTTP side of the local services: who has not said who they are has a bounded time to do so."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

if TYPE_CHECKING:
    from aiohttp.web_protocol import RequestHandler

STRANGER_TIMEOUT: Final = 20.0
"""Seconds that a connection may last before its first request is authorized. It is that of Service Bus."""


class HttpServer(web.Server):
    """aiohttp's server, which ends connections of strangers.

    A connection without an authorized request, however slowly its headers come in, is cut after
    `stranger_timeout` seconds. A handler calls :meth:`known` for each request that is authorized. It reads no
    body before.
    """

    def __init__(self, handler: Any, *, stranger_timeout: float = STRANGER_TIMEOUT, **settings: Any) -> None:
        super().__init__(handler, **settings)
        self._stranger_timeout = stranger_timeout
        self._strangers: dict[Any, asyncio.TimerHandle] = {}

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        loop = asyncio.get_running_loop()
        self._strangers[handler] = loop.call_later(self._stranger_timeout, transport.abort)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._forget(handler)

    def known(self, request: web.BaseRequest) -> None:
        """Let the connection of an authorized request last."""
        self._forget(request.protocol)

    def _forget(self, handler: Any) -> None:
        timer = self._strangers.pop(handler, None)
        if timer is not None:
            timer.cancel()


def is_text(request: web.BaseRequest) -> bool:
    """Tell whether the request line and the headers are UTF-8; aiohttp makes surrogates of other bytes."""
    try:
        request.raw_path.encode()
        for name, value in request.headers.items():
            (name + value).encode()
    except UnicodeEncodeError:
        return False
    return True
