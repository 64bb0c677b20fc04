"""A web service on FastAPI whose requests are tasks in a pool.

    GET /square/7           submits a task and answers with its value
    GET /squares?count=20   streams results as server-sent events, as they arrive
    GET /counts             gives the number of tasks in each state

With `seconds=` each task takes that long. A caller that disconnects cancels its tasks. On SIGTERM or Ctrl-C
the service lets running requests finish, for ten seconds at most. Then it closes the session and the client.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from batchflow import Client, ServiceError, Session, SessionClosed, TaskError

TASKS = Path(__file__).parent / "tasks"
CLIENT_CLOSED_REQUEST = 499


def open_session(request: Request) -> Session:
    """Return the one session of this process, which all requests share."""
    session: Session = request.state.session
    return session


SharedSession = Annotated[Session, Depends(open_session)]


class CallerGone(Exception):
    """The caller has disconnected and does not wait for the answer."""


async def while_wanted(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """Return what `work` returns. If the caller disconnects first, cancel `work`, and with it its task."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise CallerGone
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


def create_app(config: str | None = None) -> FastAPI:
    """Make the service: with the services of the configuration file or, without one, on two local nodes."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Session]]:
        async with Client.from_config(config) if config else Client.local(nodes=2, slots=4) as client:
            pool = await client.ensure_pool("fastapi", files=TASKS)
            async with pool.session() as session:
                yield {"session": session}
                await session.cancel_all()

    app = FastAPI(lifespan=lifespan)

    @app.get("/square/{number}")
    async def square(request: Request, session: SharedSession, number: int, seconds: float = 0) -> int:
        value: int = await while_wanted(request, session.run("square.py", number, seconds))
        return value

    @app.get("/squares", response_class=EventSourceResponse)
    async def squares(
        session: SharedSession, count: int = 10, seconds: float = 0
    ) -> AsyncIterator[ServerSentEvent]:
        async with session.map("square.py", [(number, seconds) for number in range(count)]) as results:
            async for result in results:
                outcome = {"number": result.index, "value": result.value, "error": result.error}
                yield ServerSentEvent(event=result.status.value, id=str(result.index), data=outcome)

    @app.get("/counts")
    async def counts(session: SharedSession) -> dict[str, int]:
        return asdict(session.counts)

    @app.exception_handler(TaskError)
    async def task_failed(request: Request, error: TaskError) -> JSONResponse:
        return JSONResponse({"error": error.result.error, "kind": error.result.kind}, 500)

    @app.exception_handler(ServiceError)
    @app.exception_handler(SessionClosed)
    async def unavailable(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": str(error), "kind": type(error).__name__}, 503)

    @app.exception_handler(CallerGone)
    async def caller_gone(request: Request, error: CallerGone) -> JSONResponse:
        return JSONResponse(None, CLIENT_CLOSED_REQUEST)

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", help="a configuration file; without one, two local nodes")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    uvicorn.run(create_app(options.config), port=options.port, timeout_graceful_shutdown=10)
