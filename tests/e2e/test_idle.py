"""Links that the broker closes because nothing moved on them: ten minutes on Azure, two seconds here."""

from __future__ import annotations

import asyncio

from batchflow import Client
from batchflow.local.server import LocalCloud

IDLE = 2.0
ECHO = b"def do_action(engine, args): return args"


async def test_session_works_on_after_an_idle_time() -> None:
    """The links of client and agent were closed meanwhile."""
    cloud = LocalCloud(nodes=1, slots=1, link_idle_timeout=IDLE)
    settings = await cloud.start()
    try:
        async with Client(settings) as client:
            pool = await client.ensure_pool("idle", files={"x.py": ECHO})
            async with pool.session("idle") as session:
                assert await session.run("x.py", "before") == ["before"]
                await asyncio.sleep(2.5 * IDLE)  # the time itself is what is tested
                assert await session.run("x.py", "after") == ["after"]
    finally:
        await cloud.aclose()
