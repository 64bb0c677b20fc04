"""The services, each as the process that a user starts, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.processes import is_alive

EXAMPLES = Path(__file__).parents[2] / "examples"
SERVICES = [
    pytest.param(EXAMPLES / "06_fastapi" / "fastapi_service.py", id="fastapi"),
    pytest.param(EXAMPLES / "07_aiohttp" / "aiohttp_service.py", id="aiohttp"),
]
PATIENCE = 30.0
"""Seconds that anything here may take on a busy machine."""

_RUNNING = re.compile(rb"[Rr]unning on (http://[\w.]+:[1-9]\d*)")


class Service:
    """A service under test: its process, and an HTTP client for it."""

    def __init__(self, process: Process, http: aiohttp.ClientSession) -> None:
        self.process = process
        self.http = http

    async def get(self, path: str, **params: Any) -> Any:
        async with self.http.get(path, params=params) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def until_counts(self, **expected: int) -> None:
        """Ask until the service counts that."""
        async with asyncio.timeout(PATIENCE):
            while not expected.items() <= (counts := await self.get("/counts")).items():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert counts["sending"] == 0

    async def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        async with asyncio.timeout(PATIENCE):
            await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode


async def address(process: Process) -> str:
    """Where the service says that it listens."""
    assert process.stdout is not None
    said = []
    async with asyncio.timeout(PATIENCE):
        while line := await process.stdout.readline():
            said.append(line)
            if found := _RUNNING.search(line):
                return found[1].decode()
    raise AssertionError(b"".join(said).decode())


@asynccontextmanager
async def running(program: Path, folder: Path) -> AsyncIterator[Service]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-u", str(program), "--port", "0", cwd=folder, stdout=PIPE, stderr=STDOUT
    )
    try:
        url = await address(process)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(url, connector=connector) as http:
            yield Service(process, http)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.fixture(params=SERVICES)
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Service]:
    async with running(request.param, tmp_path) as service:
        yield service


async def test_service_answers_streams_and_ends_in_good_order(service: Service) -> None:
    """It gets a hundred requests at once, a stream of events, and callers who go away."""
    answers = await asyncio.gather(*(service.get(f"/square/{number}") for number in range(100)))
    assert answers == [number**2 for number in range(100)]
    await service.until_counts(succeeded=100, queued=0)

    events = await read_events(service, count=20)
    assert sorted(event["number"] for event in events) == list(range(20))
    assert all(event["value"] == event["number"] ** 2 for event in events)
    await service.until_counts(succeeded=120, queued=0)

    await a_caller_goes_away(service)
    await a_reader_of_events_goes_away(service)
    await a_task_fails(service)

    finishing = asyncio.create_task(service.get("/square/12", seconds=1))
    await service.until_counts(queued=1)
    code = await service.end(signal.SIGTERM)
    assert await finishing == 144
    assert code in (0, -signal.SIGTERM)  # uvicorn gives the signal back when it is done


async def read_events(service: Service, **params: Any) -> list[Any]:
    async with service.http.get("/squares", params=params) as response:
        assert response.content_type == "text/event-stream"
        text = await response.text()
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data:")]


async def a_caller_goes_away(service: Service) -> None:
    """Its task is cancelled, although it runs."""
    asking = asyncio.create_task(service.get("/square/3", seconds=600))
    await service.until_counts(queued=1)
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking
    await service.until_counts(cancelled=1, queued=0)


async def a_reader_of_events_goes_away(service: Service) -> None:
    """Its tasks are cancelled: those that run and those that wait."""
    async with service.http.get("/squares", params={"count": 30, "seconds": 600}) as response:
        assert response.status == 200
        await service.until_counts(queued=30)
        response.close()
    await service.until_counts(cancelled=31, queued=0)


async def a_task_fails(service: Service) -> None:
    """The caller is told what was wrong with it."""
    async with service.http.get("/square/3", params={"seconds": -1}) as response:
        assert response.status == 500
        assert await response.json() == {
            "error": "ValueError: sleep length must be non-negative",
            "kind": "TaskFailed",
        }


@pytest.mark.parametrize("program", SERVICES)
async def test_interrupted_service_leaves_no_process(program: Path, tmp_path: Path) -> None:
    """Ctrl-C ends the service, its local cloud and the cloud's nodes, while a long task runs."""
    async with running(program, tmp_path) as service:
        family = descendants(service.process.pid)
        assert family
        await service.end(signal.SIGINT)
    async with asyncio.timeout(PATIENCE):
        while any(map(is_alive, family)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def descendants(process: int) -> set[int]:
    found = set[int]()
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found |= {child} | descendants(child)
    return found
