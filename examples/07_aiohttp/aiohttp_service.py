"""A web service on aiohttp whose requests are tasks in a pool.

    GET /square/7           submits a task and answers with its value
    GET /squares?count=20   streams results as server-sent events, as they arrive
    GET /counts             gives the number of tasks in each state

With `seconds=` each task takes that long. A caller that disconnects cancels its tasks. On SIGTERM or Ctrl-C
the service lets running requests finish, for ten seconds at most. Then it closes the session and the client.
"""

import argparse
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from pathlib import Path

from aiohttp import web

from batchflow import Client, Result, ServiceError, Session, SessionClosed, TaskError

TASKS = Path(__file__).parent / "tasks"
CONFIG = web.AppKey("config", str)
SESSION = web.AppKey("session", Session)
"""The one session of this process, which all requests share."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def session_of_the_app(app: web.Application) -> AsyncIterator[None]:
    """Open the session when the service starts, and close it when the service ends."""
    config = app.get(CONFIG)
    async with Client.from_config(config) if config else Client.local(nodes=2, slots=4) as client:
        pool = await client.ensure_pool("aiohttp", files=TASKS)
        async with pool.session() as session:
            app[SESSION] = session
            yield
            await session.cancel_all()


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except TaskError as error:
        return web.json_response({"error": error.result.error, "kind": error.result.kind}, status=500)
    except (ServiceError, SessionClosed) as error:
        return web.json_response({"error": str(error), "kind": type(error).__name__}, status=503)


def seconds_of(request: web.Request) -> float:
    return float(request.query.get("seconds", 0))


async def square(request: web.Request) -> web.Response:
    """Answer with a square. A caller that disconnects cancels this handler, `run`, and so the task."""
    number = int(request.match_info["number"])
    return web.json_response(await request.app[SESSION].run("square.py", number, seconds_of(request)))


async def squares(request: web.Request) -> web.StreamResponse:
    """Stream squares. Leaving the `async with` early cancels the tasks that are still under way."""
    count, seconds = int(request.query.get("count", 10)), seconds_of(request)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    inputs = [(number, seconds) for number in range(count)]
    async with request.app[SESSION].map("square.py", inputs) as results:
        async for result in results:
            await response.write(server_sent_event(result))
    return response


def server_sent_event(result: Result) -> bytes:
    data = json.dumps({"number": result.index, "value": result.value, "error": result.error})
    return f"event: {result.status.value}\nid: {result.index}\ndata: {data}\n\n".encode()


async def counts(request: web.Request) -> web.Response:
    return web.json_response(asdict(request.app[SESSION].counts))


def create_app(config: str | None = None) -> web.Application:
    """Make the service: with the services of the configuration file or, without one, on two local nodes."""
    app = web.Application(middlewares=[errors_as_json])
    if config is not None:
        app[CONFIG] = config
    app.cleanup_ctx.append(session_of_the_app)
    app.add_routes(
        [
            web.get(r"/square/{number:-?\d+}", square),
            web.get("/squares", squares),
            web.get("/counts", counts),
        ]
    )
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", help="a configuration file; without one, two local nodes")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    web.run_app(
        create_app(options.config),
        host="127.0.0.1",
        port=options.port,
        handler_cancellation=True,
        shutdown_timeout=10,
    )
