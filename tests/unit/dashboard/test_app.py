"""The page in web applications: one line in each, and the page is the same."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession, web

from batchflow.client import Client
from batchflow.dashboard import Dashboard
from batchflow.pool import Pool
from tests.support.agent import Agent
from tests.support.waiting import eventually

pytest.importorskip("fastapi", reason="FastAPI is not installed")


@asynccontextmanager
async def on_fastapi(dashboard: Dashboard) -> AsyncIterator[str]:
    import uvicorn
    from fastapi import FastAPI

    app = FastAPI()
    app.mount("/pools", dashboard.asgi())
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
        serving = asyncio.create_task(server.serve([listening]))
        yield f"http://127.0.0.1:{port}"
        await dashboard.aclose()
        server.should_exit = True
        await serving


@asynccontextmanager
async def on_aiohttp(dashboard: Dashboard) -> AsyncIterator[str]:
    app = web.Application()
    app.add_subapp("/pools", dashboard.aiohttp())
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.mark.parametrize("serving", [on_fastapi, on_aiohttp])
async def test_one_line_serves_the_page_in_an_application(
    client: Client, pool: Pool, agent: Agent, serving: object
) -> None:
    """Its files, its stream until the reader leaves, its metrics, and its refusals."""
    dashboard = Dashboard(client, pool=pool.id)
    async with serving(dashboard) as address, ClientSession() as http:  # type: ignore[operator]

        async def get(path: str) -> tuple[int, str, str]:
            async with http.get(f"{address}/pools/{path}") as answer:
                policy = answer.headers.get("content-security-policy", "")
                return answer.status, policy, await answer.text()

        async def listens() -> bool:
            try:
                return (await get(""))[0] == 200
            except OSError:
                return False

        await eventually(listens)
        assert "default-src 'none'" in (await get(""))[1]
        assert "EventSource" in (await get("page.js"))[2]
        assert (await get("none"))[0] == 404
        async with http.get(f"{address}/pools/events") as events:
            assert events.content_type == "text/event-stream"
            async for line in events.content:
                if b'"agents":1' in line:
                    break
        assert 'batchflow_agents{pool="demo"} 1' in (await get("metrics"))[2]
        body = {"pool": "demo", "action": {"do": "resize", "nodes": 1}}
        async with http.post(f"{address}/pools/act", json=body) as answer:
            assert answer.status == 403
