"""With sniffio installed, as many packages have it, a callback of the event loop is outside of asyncio.

The agents of the local cloud run in this interpreter's environment, and so have it too.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from pathlib import Path

import pytest
import sniffio

from batchflow import Client
from tests.e2e.conftest import TASKS

PATIENCE = 60.0
NESTED = """
import asyncio, sys
import nest_asyncio2
from batchflow import Client

nest_asyncio2.apply()

async def main():
    async with Client.from_config(sys.argv[1]) as client:
        task = b"def do_action(engine, args): return args"
        pool = await client.ensure_pool("nested", files={"echo.py": task})
        async with pool.session() as session:
            results = session.map("echo.py", range(20))
            await anext(results)
            del results
            print(asyncio.get_running_loop().run_until_complete(session.run("echo.py", "nested")))

asyncio.run(main())
"""


async def test_agent_goes_on_after_a_dropped_map() -> None:
    """Reading cancellations and starting tasks happens in callbacks of the loop."""
    assert sniffio.current_async_library() == "asyncio"
    async with Client.local(nodes=1, slots=2) as client:
        pool = await client.ensure_pool("dropped", files=[TASKS])
        await pool.wait_ready(timeout=PATIENCE)
        agents = {beat.agent for beat in await pool.heartbeats()}
        async with pool.session() as session:
            results = session.map("sleeps.py", [[0.05]] * 50)
            await anext(results)
            del results
            gc.collect()
            for _ in range(3):
                await asyncio.wait_for(session.run("echo.py", 1), PATIENCE)
        assert {beat.agent for beat in await pool.heartbeats()} == agents


def test_session_works_in_a_loop_that_is_entered_again(cloud_config: Path) -> None:
    """nest_asyncio does so for notebooks: it runs a task's callbacks in the middle of another task."""
    pytest.importorskip("nest_asyncio2")
    command = [sys.executable, "-c", NESTED, str(cloud_config)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (finished.stdout, finished.stderr) == ("['nested']\n", "")
