"""A client for the tests to kill, or to pause: submits tasks and prints each result as it is shown.

When its session ends before the results do, it prints why.
"""

import asyncio
import sys

from batchflow import Client
from batchflow.errors import SessionClosed


async def main(config: str, name: str, tasks: int, journal: str | None = None) -> None:
    async with Client.from_config(config) as client:
        pool = await client.pool("shared")
        async with pool.session(name, job="crash", journal=journal) as session:
            for number in range(tasks):
                await session.submit("sleeps.py", "0.02", task_id=str(number))
            await session.flush()
            try:
                async for result in session.results():
                    print(result.task_id, flush=True)  # noqa: T201
            except SessionClosed as error:
                print(error, flush=True)  # noqa: T201


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:]))
