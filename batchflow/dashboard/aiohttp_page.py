"""The page for aiohttp."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from aiohttp import web

from batchflow.dashboard.exchange import MOST_BODY, PageAnswer, PageRequest

if TYPE_CHECKING:
    from batchflow.dashboard.handlers import PageHandlers


def application(handlers: PageHandlers) -> web.Application:
    """Return the page as an application, which can be one below another."""

    async def handle(request: web.Request) -> web.StreamResponse:
        asked = PageRequest(
            request.method,
            request.match_info["path"],
            dict(request.query),
            {name.lower(): value for name, value in request.headers.items()},
            await request.read() if request.can_read_body else b"",
        )
        answer = await handlers.handle(asked)
        if answer.stream is None:
            return web.Response(status=answer.status, headers=answer.headers, body=answer.body)
        return await _streamed(request, answer)

    async def close(_: web.Application) -> None:
        await handlers.aclose()

    made = web.Application(client_max_size=MOST_BODY)
    made.router.add_route("*", "/{path:.*}", handle)
    made.on_shutdown.append(close)
    return made


async def _streamed(request: web.Request, answer: PageAnswer) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    await response.prepare(request)
    assert answer.stream is not None
    pieces = answer.stream
    with contextlib.suppress(ConnectionError):  # the page was closed
        async for piece in pieces:
            await response.write(piece)
    await pieces.aclose()  # type: ignore[attr-defined]
    return response
