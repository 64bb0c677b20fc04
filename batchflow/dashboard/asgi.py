"""The page for FastAPI, Starlette, and whatever else speaks ASGI. It imports none of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from batchflow.dashboard.exchange import MOST_BODY, PageRequest, refused

if TYPE_CHECKING:
    from batchflow.dashboard.exchange import PageAnswer
    from batchflow.dashboard.handlers import PageHandlers

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class AsgiPage:
    """An ASGI application."""

    def __init__(self, handlers: PageHandlers) -> None:
        self._handlers = handlers

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = await _body(receive)
        if body is None:
            await _send(refused(413, "the body is too large"), send)
            return
        root, path = scope.get("root_path", ""), scope["path"]
        below = path.removeprefix(root) if root else path
        if not below:
            await _send_redirect(f"{path}/", send)
            return
        request = PageRequest(
            scope["method"],
            below,
            dict(parse_qsl(scope["query_string"].decode("latin-1"))),
            {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]},
            body,
        )
        answer = await self._handlers.handle(request)
        if answer.stream is None:
            await _send(answer, send)
        else:
            await _stream(answer, receive, send)


async def _body(receive: Receive) -> bytes | None:
    """Read the request's body; None when it is too large."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MOST_BODY:
            return None
    return body


def _start(answer: PageAnswer) -> Message:
    headers = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
    return {"type": "http.response.start", "status": answer.status, "headers": headers}


async def _send(answer: PageAnswer, send: Send) -> None:
    await send(_start(answer))
    await send({"type": "http.response.body", "body": answer.body})


async def _send_redirect(location: str, send: Send) -> None:
    headers = [(b"location", location.encode())]
    await send({"type": "http.response.start", "status": 307, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _stream(answer: PageAnswer, receive: Receive, send: Send) -> None:
    """Send pieces until the page is closed."""
    assert answer.stream is not None
    pieces = answer.stream

    async def pump() -> None:
        async for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    await send(_start(answer))
    sending = asyncio.create_task(pump(), name="dashboard events")
    leaving = asyncio.create_task(_until_left(receive), name="dashboard watcher")
    try:
        await asyncio.wait([sending, leaving], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (sending, leaving):
            task.cancel()
        await asyncio.wait([sending, leaving])
        await pieces.aclose()  # type: ignore[attr-defined]
    if not sending.cancelled() and (error := sending.exception()) is not None:
        raise error


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
