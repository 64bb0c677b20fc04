"""Administration of the namespace over HTTP: Atom entries in XML, as the SDKs' administration client speaks it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchflow.local.servicebus_broker import Broker


def administration(
    broker: Broker, clock: Callable[[], float], latency: float, changed: Callable[[], None]
) -> web.Server:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=501)

    return web.Server(handle)
