"""A client for the tests to kill: submits tasks to an elastic pool, says so, and waits."""

import asyncio
import sys

from batchflow import Client


async def main(config: str, pool_id: str, tasks: int, seconds: str, name: str) -> None:
    async with Client.from_config(config) as client:
        pool = await client.pool(pool_id)
        async with pool.session(name) as session:
            for number in range(tasks):
                await session.submit("sleeps.py", seconds, task_id=str(number))
            await session.flush()
            print("flushed", flush=True)  # noqa: T201
            await asyncio.sleep(600)


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:]))
