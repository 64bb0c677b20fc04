"""A whole program, from its first line to its first result; prints its phases as JSON, in seconds."""

import time

started = time.perf_counter()

import asyncio  # noqa: E402
import json  # noqa: E402
from pathlib import Path  # noqa: E402

from batchflow import Client  # noqa: E402

TASKS = Path(__file__).parent / "tasks"


async def main() -> None:
    phases = {}
    last = started

    def mark(phase: str) -> None:
        nonlocal last
        now = time.perf_counter()
        phases[phase] = now - last
        last = now

    mark("import batchflow")
    async with Client.local(nodes=2) as client:
        mark("open the client")
        pool = await client.ensure_pool("bench", files=TASKS)
        mark("make the pool")
        async with pool.session() as session:
            mark("open the session")
            await session.run("noop.py")
            mark("first result")
            print(json.dumps(phases), flush=True)


asyncio.run(main())
