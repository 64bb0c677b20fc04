"""A client for the tests to kill: submits tasks and prints each result as it is shown."""

import asyncio
import sys

from batchflow import Client


async def main(config: str, name: str, tasks: int) -> None:
    async with Client.from_config(config) as client:
        pool = await client.pool("shared")
        async with pool.session(name, job="crash") as session:
            for number in range(tasks):
                await session.submit("sleeps.py", "0.02", task_id=str(number))
            await session.flush()
            async for result in session.results():
                print(result.task_id, flush=True)  # noqa: T201


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
